use std::path::Path;

use super::*;

fn template(source: &str) -> Result<ChatTemplate, String> {
    ChatTemplate::new("chat_template.jinja".into(), source, &Map::new()).map_err(|error| error.to_string())
}

fn render(source: &str) -> Result<String, String> {
    let hello = json!({"role": "user", "content": "hello"});
    template(source)?.render(&[hello], false).map_err(|error| error.to_string())
}

/// What `tests/fixtures/make_chat.py` has written with `transformers`.
#[test]
fn conversations_are_rendered_as_transformers_renders_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/chat");
    let reference: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("reference.json")).unwrap()).unwrap();
    let cases = reference["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 50);
    for case in cases {
        let text = |key: &str| case[key].as_str();
        let (name, conversation) = (text("template").unwrap(), text("conversation").unwrap());
        let path = folder.join(name).with_extension("jinja");
        let source = std::fs::read_to_string(&path).unwrap();
        let template = ChatTemplate::new(path, &source, reference["tokens"].as_object().unwrap()).unwrap();
        let messages = reference["conversations"][conversation].as_array().unwrap();
        let rendered = template.render(messages, case["generation_prompt"].as_bool().unwrap());
        match (rendered, text("text"), text("refused")) {
            (Ok(rendered), Some(expected), _) => assert_eq!(rendered, expected, "{name}, {conversation}"),
            // The template's own words; what Python says of its types the engine says in another way.
            (Err(error), None, Some(refused)) if source.contains(refused) => {
                let error = error.to_string();
                assert!(error.ends_with(&format!("refuses the conversation: {refused}")), "{name}: {error}");
            }
            (Err(_), None, Some(_)) => {}
            (outcome, ..) => panic!("{name}, {conversation}: {outcome:?}"),
        }
    }
}

#[test]
fn faults_are_sentences_with_the_file_and_the_line() {
    for (source, expected) in [
        ("{% for x in %}", "is not understood in line 1: unexpected end of block"),
        (
            "a\n{{ messages[0].content.shout() }}",
            "fails on a conversation in line 2: string has no method named shout",
        ),
        ("{{ raise_exception('No\\nway.') }}", "refuses the conversation: No way."),
        ("{{ strftime_now('%Q') }}", "fails on a conversation in line 1: strftime_now does not know %Q"),
        ("{% include 'other' %}", "is not understood in line 1: unknown statement include"),
        (
            "{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}",
            "takes more steps than any conversation of this length should need",
        ),
        (
            "{% set ns = namespace(x='abc') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "takes more steps than any conversation of this length should need",
        ),
        (
            "{{ '{:>4000000000}'.format('a') }}",
            "takes more steps than any conversation of this length should need",
        ),
        (
            "{% set ns = namespace(x=['a']) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
            "writes more than 64 MiB for one conversation",
        ),
    ] {
        let error = render(source).unwrap_err();
        assert_eq!(error, format!("chat_template.jinja: the chat template {expected}"), "{source}");
    }
    let error = template(&" ".repeat(MAX_TEMPLATE_BYTES + 1)).map(|_| ()).unwrap_err();
    assert!(error.ends_with("is 65537 bytes long; at most 65536 are taken"), "{error}");
    let error = template("").unwrap().render(&[json!("hello")], false).unwrap_err().to_string();
    assert!(error.ends_with("takes messages that are objects, and one is \"hello\""), "{error}");
}

/// A stack that overflows ends the process.
#[test]
fn no_template_is_nested_too_deeply_for_the_stack() {
    let chain = |begin: &str, link: &str, end: &str| {
        let links = (MAX_TEMPLATE_BYTES - begin.len() - end.len()) / link.len();
        begin.to_owned() + &link.repeat(links) + end
    };
    for (begin, link, end) in [
        ("{{ ", "(", "}}"),
        ("{{ ", "-", "1 }}"),
        ("{{ ", "not ", "1 }}"),
        ("{{ a", "()", "}}"),
        ("{{ a", ".a", "}}"),
        ("{{ a", "|e", "}}"),
        ("{{ a", "+a", "}}"),
        ("{{ a", " is a", "}}"),
        ("{{ a", " if 0 else a", "}}"),
        ("{% if 1 %}", "{%if 1%}", ""),
        ("{% if 0 %}", "{%elif 0%}", "{% endif %}"),
    ] {
        let _ = render(&chain(begin, link, end));
    }
    for source in [
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}",
        "{% set ns = namespace(x=[]) %}{% for i in range(20000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    ] {
        let _ = render(source);
    }
}

#[test]
fn a_list_of_templates_gives_the_default_one() {
    let list = |value: Value| default_template(Some(&value));
    assert_eq!(default_template(None), Ok(None));
    assert_eq!(list(json!(null)), Ok(None));
    assert_eq!(list(json!("x")), Ok(Some("x".to_owned())));
    let named = |name: &str| json!([{"name": "tool_use", "template": "a"}, {"name": name, "template": "b"}]);
    assert_eq!(list(named("default")), Ok(Some("b".to_owned())));
    assert_eq!(
        list(named("rag")),
        Err("is a list without the name `default`; there are `tool_use`, `rag`".to_owned())
    );
    assert!(list(json!([{"name": "default"}])).unwrap_err().contains("not every entry has"));
    assert!(list(json!(3)).unwrap_err().contains("neither a text nor a list"));
}

#[test]
fn special_tokens_are_variables_however_they_are_written() {
    let settings =
        json!({"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}, "pad_token": null});
    let source = "{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}{{ tokenizer_class is defined }}";
    let template = ChatTemplate::new("t".into(), source, settings.as_object().unwrap()).unwrap();
    assert_eq!(template.render(&[], false).unwrap(), "<s></s>FalseFalse");
}
