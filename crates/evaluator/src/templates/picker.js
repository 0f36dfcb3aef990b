
// One layer at a time: chosen in the list, by search, by the arrow keys, or by a link to it.
(() => {
  const choice = document.getElementById("choice");
  if (!choice) return;
  const search = document.getElementById("search");
  const list = document.getElementById("choices");
  const found = document.getElementById("found");
  const panels = [...document.querySelectorAll("#panels > details")];
  const options = panels.map((panel) => {
    const option = document.createElement("li");
    const name = document.createElement("span");
    const decibels = document.createElement("span");
    name.append(...panel.querySelector(".path").cloneNode(true).childNodes);
    decibels.textContent = panel.dataset.db;
    decibels.className = "db";
    option.append(name, decibels);
    option.id = `choose-${panel.id}`;
    option.setAttribute("role", "option");
    list.append(option);
    return option;
  });
  let current = -1;

  const shown = () => options.flatMap((option, index) => (option.hidden ? [] : [index]));

  const choose = (index) => {
    if (index === undefined || index < 0) return;
    current = index;
    panels.forEach((panel, i) => {
      panel.classList.toggle("chosen", i === index);
      if (i === index) panel.open = true;
    });
    options.forEach((option, i) => option.setAttribute("aria-selected", String(i === index)));
    for (const element of [search, list]) element.setAttribute("aria-activedescendant", options[index].id);
    // Scrolls the list and never the page.
    const [top, bottom] = [options[index].offsetTop, options[index].offsetTop + options[index].offsetHeight];
    if (top < list.scrollTop) list.scrollTop = top;
    else if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight;
  };

  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    options.forEach((option) => {
      const name = option.firstChild.textContent.toLowerCase();
      option.hidden = !words.every((word) => name.includes(word));
    });
    const left = shown();
    const layers = options.length === 1 ? "layer" : "layers";
    found.textContent = words.length ? `${left.length} of ${options.length} ${layers}` : `${options.length} ${layers}`;
    if (left.length && !left.includes(current)) choose(left[0]);
  };

  const keys = (event) => {
    const left = shown();
    if (!left.length || event.altKey || event.ctrlKey || event.metaKey) return;
    const at = left.indexOf(current);
    const inList = event.currentTarget === list;
    const target = {
      ArrowDown: Math.min(at + 1, left.length - 1),
      ArrowUp: Math.max(at - 1, 0),
      PageDown: Math.min(at + 10, left.length - 1),
      PageUp: Math.max(at - 10, 0),
      ...(inList && { Home: 0, End: left.length - 1 }),
    }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    choose(left[target]);
  };

  const fromAddress = () => {
    const index = panels.findIndex((panel) => `#${panel.id}` === location.hash);
    if (index < 0) return;
    if (options[index].hidden) {
      search.value = "";
      filter();
    }
    choose(index);
    document.getElementById("distributions").scrollIntoView();
    list.focus({ preventScroll: true });
  };

  search.addEventListener("input", filter);
  search.addEventListener("keydown", keys);
  list.addEventListener("keydown", keys);
  list.addEventListener("click", (event) => {
    const option = event.target.closest("[role=option]");
    if (option) choose(options.indexOf(option));
  });
  // A second click on the same link chooses again.
  for (const link of document.querySelectorAll('a[href^="#layer-"]')) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      history.replaceState(null, "", link.getAttribute("href"));
      fromAddress();
    });
  }
  window.addEventListener("hashchange", fromAddress);
  document.documentElement.classList.add("scripted");
  choice.hidden = false;
  filter();
  choose(0);
  fromAddress();
})();
