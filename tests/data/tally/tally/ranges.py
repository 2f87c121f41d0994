"""`1-3,5` and back."""


def expand(text):
    """The numbers that a text like `1-3,5` stands for, in its order."""
    numbers = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if dash:
            numbers.extend(range(int(first), int(last)))
        else:
            numbers.append(int(first))
    return numbers


def collapse(numbers):
    """The shortest text for numbers in ascending order."""
    parts = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
