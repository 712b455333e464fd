"""Questions about signs, handwritten digits and bar charts; and captions of them."""

import numpy as np

from vlalign_utils.data.things.handwriting import WrittenDigit
from vlalign_utils.data.things.month_charts import MONTHS, MonthChart
from vlalign_utils.data.things.questions import Question
from vlalign_utils.data.things.written_signs import WrittenSign

READ = ("What does the sign say?", "Which word is on the sign?", "What is written here?")
DIGIT = ("Which digit is this?", "What number is written here?", "Which digit is shown?")
HIGHEST = ("Which month has the highest bar?", "In which month is the bar highest?")
LOWEST = ("Which month has the lowest bar?", "In which month is the bar lowest?")
HIGHER = ("Is the bar of {x} higher than that of {y}?", "Is {x} higher than {y}?")
BARS = ("How many bars are there?", "How many months are shown?")
NUMBERS = {2: "Two", 3: "Three", 4: "Four"}


def ask_sign(sign: WrittenSign, rng: np.random.Generator) -> Question:
    """Ask which word is written; the answer is the word as it stands there."""
    return Question("read", READ[rng.integers(len(READ))], sign.word)


def sign_caption(sign: WrittenSign) -> str:
    """What the sign says."""
    return f'A sign with the word "{sign.word}".'


def ask_digit(digit: WrittenDigit, rng: np.random.Generator) -> Question:
    """Ask which digit is written."""
    return Question("digit", DIGIT[rng.integers(len(DIGIT))], str(digit.value))


def digit_caption(digit: WrittenDigit) -> str:
    """Which digit is written."""
    return f"The handwritten digit {digit.value}."


def ask_extreme(chart: MonthChart, rng: np.random.Generator) -> Question:
    """Ask for the month of the highest or the lowest bar."""
    ranked, low = chart.ranked(), bool(rng.random() < 0.5)
    options = LOWEST if low else HIGHEST
    return Question("chart", options[rng.integers(len(options))], MONTHS[ranked[0 if low else -1]])


def ask_higher(chart: MonthChart, rng: np.random.Generator) -> Question:
    """Ask whether one bar is higher than another."""
    i, j = (int(k) for k in rng.permutation(len(chart.months))[:2])
    text = HIGHER[rng.integers(len(HIGHER))].format(x=MONTHS[chart.months[i]], y=MONTHS[chart.months[j]])
    return Question("chart", text, "Yes" if chart.heights[i] > chart.heights[j] else "No")


def ask_bars(chart: MonthChart, rng: np.random.Generator) -> Question:
    """Ask how many bars there are."""
    return Question("chart", BARS[rng.integers(len(BARS))], NUMBERS[len(chart.months)])


def chart_caption(chart: MonthChart) -> str:
    """Heights of the bars, in the order of the year."""
    pairs = zip(chart.months, chart.heights, strict=True)
    return f"A bar chart: {', '.join(f'{MONTHS[m]} {h}' for m, h in pairs)}."
