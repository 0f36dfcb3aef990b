"""What decoders are asked to continue."""

PROMPTS = [
    "The capital of France is",
    "The three states of matter are",
    "Water boils at a lower temperature on a mountain because",
    "To make a good cup of tea, first",
    "The Roman Empire reached its greatest extent under",
    "A triangle with two equal sides is called",
    "Once upon a time, in a small village by the sea,",
    "The main difference between a virus and a bacterium is that",
    "Dear Sir or Madam, I am writing to",
    "In the northern hemisphere, the shortest day of the year",
]
