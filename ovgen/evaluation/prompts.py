"""The prompts that two models go on with where the user gives none."""

PROMPTS = (
    "The capital of France is",
    "Water boils at a lower temperature on a mountain because",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "Three differences between a cat and a dog are",
)
