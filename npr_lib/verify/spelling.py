r"""One spelling for what is written in many ways, before an answer is read: a table of rules.

`spell` applies `RULES` from top to bottom. A rule only ever changes how a thing is written
(`\dfrac` and `\frac`, `½` and `\frac{1}{2}`, `58{,}500` and `58500`), never what it says: units,
percent signs, bases and text stay, for `answers` to judge.
"""

# ruff: noqa: E501, SIM905 - rows of a table stay rows, lists of words are words

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_CHARACTERS = {
    "−–—": "-",
    "×·⋅∙∗": r"\times ",
    "÷": "/",
    "≤⩽": r"\le ",
    "≥⩾": r"\ge ",
    "≠": r"\ne ",
    "≡": r"\equiv ",
    "∞": r"\infty ",
    "π": r"\pi ",
    "θ": r"\theta ",
    "°º": r"\degree ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "±": r"\pm ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "⟨〈": r"\langle ",
    "⟩〉": r"\rangle ",
    "∅": r"\emptyset ",
    "ℤ": r"\mathbb{Z}",
    "ℝ": r"\mathbb{R}",
    "…": r"\dots ",
    '“”‘’"': "",
    "\u200b\u200c\u200d\u2060\ufeff\u00ad": "",
    "\u00a0\u2009\u202f\u2002\u2003": " ",
}
_TABLE = {ord(c): text for characters, text in _CHARACTERS.items() for c in characters}
_GROUP = r"\{((?:[^{}]|\{[^{}]*\})*)\}"  # braces with at most one pair inside
_NUMBER = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
_FUNCTIONS = (
    "arcsin arccos arctan arccot sinh cosh tanh sin cos tan cot sec csc ln log exp gcd lcm"
).split()
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8}
_BASES |= {"nine": 9, "ten": 10, "twelve": 12, "sixteen": 16}
# Short words that are no products of letters.
WORDS = set(
    "no on yes or and odd all red is if of in to by for the not one two six ten men day as at"
    " even am pm sq mph kmh kph rpm Hz kHz MHz GHz kW MW GW Pa kPa MPa mol ml mL kJ eV lb lbs oz".split()
)

Replacement = str | Callable[[re.Match[str]], str]
# (what is written otherwise, pattern, how it is written here)
RULES: list[tuple[str, str, Replacement]] = [
    ("a list as Python prints it", r"^\[(?=['\"])(.*)\]$", lambda m: _items(m[1])),
    ("hyphens", r"(?<=[a-zA-Z]{3})-(?=[a-zA-Z]{3})", " "),
    ("powers in plain text", r"(?<=[0-9a-zA-Z)])\*\*(?=[0-9a-zA-Z(-])", "^"),
    ("markdown", r"\*\*|__|`", ""),
    ("math delimiters", r"(?<!\\)\\[()\[\]]", ""),
    ("escaped currency", r"\\text\{\s*\\\$\s*\}|\\textdollar", r"\\$"),
    ("currency", rf"(?:\\\$|USD|US\\\$|\$(?=[^$]*$))\s*(-?(?:{_NUMBER})[0-9,{{}}]*)", r"\1 dollars"),
    ("dollar signs", r"(?<!\\)\$", " "),
    ("a box around it", rf"^\s*\\(?:boxed|fbox|underline)\s*{_GROUP}[\s.,]*$", r"\1"),
    ("before an answer", r"\\therefore(?![a-z])|\\implies(?![a-z])", ""),
    ("fractions", r"\\[dtcs]frac|\\nicefrac", r"\\frac"),
    ("raised fractions", r"\^\{?([0-9]+)\}?\s*/\s*_\{?([0-9]+)\}?", r"\\frac{\1}{\2}"),
    ("sizes", r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|nolimits)(?![a-zA-Z])", ""),
    ("colours", r"\\(?:text)?color\s*\{[^{}]*\}", ""),
    ("thousands", r"(?<=[0-9])(?:\{,\}|\\,|\\;|\\ |~)(?=[0-9]{3}(?![0-9]))", ""),
    ("thousands, by spaces", r"(?<![0-9.] )(?<![0-9.])([0-9]{1,3}(?: [0-9]{3})+)(?![0-9]| ?[/0-9])", lambda m: m[1].replace(" ", "")),
    ("colons", r"\\!|\\colon|\{:\}|\\mathbin\{:\}", lambda m: "" if m[0] == r"\!" else ":"),
    ("spaces", r"(?<!\\)\\[,;:> ]|~|\\q?quad|\\thinspace|\\(?:h|v)space\*?\{[^{}]*\}|\\\n", " "),
    ("roman i and e", r"\\(?:mathrm|mathbf|mathit|text|rm|operatorname)\s*\{\s*([ie])\s*\}", r" \1 "),
    ("a roman x that multiplies", r"(?<=[0-9 ])\\mathrm\{x\}(?=\s*10)", r"\\times "),
    ("degrees", r"\^\s*\{?\s*\\circ\s*\}?|\^\s*\{\s*\\text\{o\}\s*\}|\\degree", r"\\degree "),
    ("degrees in words", r"\\(?:text|mathrm)\{\s*degrees?\s*\}|(?<![\\a-zA-Z])degrees?\b(?!\s*[CF])", r"\\degree "),
    ("percent", r"\\%|%|\\(?:text|mathrm)\{\s*\\?(?:%|percent)\s*\}|\bper ?cent\b", r"\\% "),
    ("numbers in bold", r"\\(?:textbf|mathbf|mathrm|text|bf|rm)\s*\{\s*(-?[0-9][0-9.,]*)\s*\}", r" \1 "),
    ("text", r"\\(?:textbf|textit|textrm|textsf|texttt|mathrm|mathbf|mathsf|mathit|mbox|emph|bf|rm|operatorname\*?|mathop|boldsymbol)\s*(?=\{)", r"\\text"),
    ("infinity", r"\\text\{\s*infinity\s*\}|\binfinity\b|\\infin\b", r"\\infty "),
    ("functions in words", rf"(?<![\\a-zA-Z{{])({'|'.join(_FUNCTIONS)})(?![a-zA-Z])", r"\\\1 "),
    ("functions as text", rf"\\text\{{\s*({'|'.join(_FUNCTIONS)})\s*\}}", r"\\\1 "),
    ("natural logarithm", r"\\log\s*_\s*\{?\s*e\s*\}?", r"\\ln "),
    ("braces", r"\\lbrace(?![a-z])", r"\\{"),
    ("braces", r"\\rbrace(?![a-z])", r"\\}"),
    ("bars", r"\\[lr]?vert(?![a-z])|\\mid(?![a-z])", "|"),
    ("less", r"\\l(?:e|eq|eqslant|eqq)(?![a-z])|<=", r"\\le "),
    ("greater", r"\\g(?:e|eq|eqslant|eqq)(?![a-z])|>=", r"\\ge "),
    ("strictly less", r"\\lt(?![a-z])", "<"),
    ("strictly greater", r"\\gt(?![a-z])", ">"),
    ("different", r"\\neq(?![a-z])|\\not\s*=|!=", r"\\ne "),
    ("times", r"\\(?:cdot|times|ast)(?![a-z])|\*", r"\\times "),
    ("divided", r"\\div(?![a-z])", "/"),
    ("union", r"\\bigcup(?![a-z])", r"\\cup "),
    ("without", r"\\(?:setminus|backslash)(?![a-z])", r"\\setminus "),
    ("dots", r"\\[lc]dots(?![a-z])|\.\.\.", r"\\dots "),
    ("empty set", r"\\varnothing(?![a-z])", r"\\emptyset "),
    ("modulo", r"\(\s*\\(?:b|p)?mod\s*\{?([a-zA-Z0-9]+)\}?\s*\)|\\(?:b|p)?mod\s*(?:\{([^{}]*)\}|([a-zA-Z0-9]+))", lambda m: rf"\pmod{{{m[1] or m[2] or m[3]}}}"),
    ("modulo in words", r"\(?\bmod(?:ulo)?\s+([0-9]+)\)?", r"\\pmod{\1}"),
    ("choose, written low", r"\{?\}?_\{?\s*([0-9a-z]+)\s*\}?\s*C\s*_\s*\{?\s*([0-9a-z]+)\s*\}?", r"\\binom{\1}{\2}"),
    ("choose, written both ways", r"(?<![a-zA-Z])C_\s*\{?\s*([0-9a-z]+)\s*\}?\s*\^\s*\{?\s*([0-9a-z]+)\s*\}?", r"\\binom{\1}{\2}"),
    ("choose, as a function", r"(?<![a-zA-Z])C\s*\(([0-9a-z]+),\s*([0-9a-z]+)\)", r"\\binom{\1}{\2}"),
    ("nothing in braces", r"\\\{\s*\\\}", r"\\emptyset "),
    ("choose, by its word", r"\{\s*([^{}]*?)\s*\\choose(?![a-z])\s*([^{}]*?)\s*\}", r"\\binom{\1}{\2}"),
    ("over", r"\{\s*([^{}]*?)\s*\\over(?![a-z])\s*([^{}]*?)\s*\}", r"\\frac{\1}{\2}"),
    ("choose, written high", r"(?<![0-9a-zA-Z)}])\^\s*\{?\s*([0-9a-z]+)\s*\}?\s*C\s*_\s*\{?\s*([0-9a-z]+)\s*\}?", r"\\binom{\1}{\2}"),
    ("roots in plain text", r"(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    ("pi in plain text", r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi "),
    ("an x that multiplies", r"(?<=[0-9])\s*[xX]\s*(?=10\s*\^)", r"\\times "),
    ("exponents of many digits", r"\^\s*(-?[0-9]{2,})", r"^{\1}"),
    ("number sets", r"\\mathbb\s*([A-Z])|\\text\{\s*all real numbers\s*\}|\ball real numbers\b", lambda m: rf"\mathbb{{{m[1] or 'R'}}}"),
    ("times of day", r"(?i)(?<![a-z])([ap])\.\s*m\.?(?![a-z])", r"\1m"),
    ("choose", r"\\[dt]binom", r"\\binom"),
    ("powers of ten", rf"({_NUMBER})[eE]([+-]?[0-9]+)(?![0-9a-zA-Z])", r"\1\\times 10^{\2}"),
    ("bases after it", r"\(?\s*(?:\\text\{)?\s*\(?(?:in\s+)?\bbase\s*\}?\s*\(?([0-9]+)\)?\s*\}?\)?\s*$", r"_{\1}"),
    ("bases in brackets", r"_\s*\{\s*\(([0-9]+)\)\s*\}", r"_{\1}"),
    ("bases in words", r"_\s*\{?\s*(?:\\text\{)?\s*([a-z]{3,})\s*\}*", lambda m: f"_{{{_BASES.get(m[1], m[1])}}}"),
    ("an interval, open by its bracket", r"^\s*\[([^\[\]]*)\[\s*$", r"[\1)"),
    ("an interval, open by its bracket", r"^\s*\]([^\[\]]*)\[\s*$", r"(\1)"),
    ("an interval, open by its bracket", r"^\s*\]([^\[\]]*)\]\s*$", r"(\1]"),
    ("a label", r"^\s*(?:\\text\{)?\s*(?:the )?(?:final )?answer(?: is)?\s*[:=]?\s*(\})?", lambda m: "" if m[1] or "{" not in m[0] else r"\text{"),
    ("a quantity as text", rf"^\\text\{{\s*(-?(?:{_NUMBER}))\s+([a-zA-Z^0-9/ ]+)\}}$", r"\1\\text{ \2}"),
    ("a mark at the end", r"(?<![.\\])(?:[.;,]|\\text\{\s*[.;,!]\s*\}|\s)+$", ""),
    ("a mark at the end of text", r"(\\text\{[^{}]*?)\s*[.;,!]\s*\}$", r"\1}"),
]  # fmt: skip
_COMPILED = [(name, re.compile(p, re.I if "label" in name else 0), r) for name, p, r in RULES]
_JOINED = re.compile(r"(?<![0-9.,])([0-9]{1,3}(?:,[0-9]{3})+)(?![0-9]|,[0-9])")
_BARE = re.compile(r"\\(?:text|begin|end)\s*\{[^{}]*\}|\\[a-zA-Z]+|(?<![a-zA-Z])[a-zA-Z]{2,}")


def spell(text: str, thousands: bool = True) -> str:
    """The text in one spelling. thousands: whether `58,500` is a number, else two in a list."""
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    text = "".join(_plain(c) for c in text.translate(_TABLE))
    text = re.sub(r"√\s*(\d+|[a-zA-Z]|\([^()]*\))", r"\\sqrt{\1}", text)
    for _, pattern, replacement in _COMPILED:
        text = pattern.sub(replacement, text)
    if thousands:
        text = _JOINED.sub(lambda m: m[1].replace(",", ""), text)
    return _BARE.sub(_word, text).strip()


def _plain(character: str) -> str:
    """Digits, letters and fractions of other alphabets and widths as ASCII."""
    if character.isascii():
        return character
    if (low := character.translate(_SUBSCRIPTS)) != character:
        return f"_{{{low}}}"
    form = unicodedata.normalize("NFKC", character)
    if "\u2044" in form:
        over, under = form.split("\u2044")
        return rf"\frac{{{over}}}{{{under}}}"
    return form if form.isascii() else character


def _items(text: str) -> str:
    """The strings of a list as Python prints it, in one line."""
    items = re.findall(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"", text)
    return ", ".join((one or two).replace("\\\\", "\\") for one, two in items)


def _word(match: re.Match[str]) -> str:
    """Letters that are a word, and no product of variables, become text."""
    run = match[0]
    known = run in WORDS or run.lower() in WORDS or run in UNITS
    if run.startswith("\\") or (len(run) < 4 and not known):
        return run
    return rf"\text{{ {run} }}"


# Units by their names: (what is measured, how many of its base unit). Others are words.
UNITS: dict[str, tuple[str, int]] = {}
for _kind, _names in {
    "time": "s sec second seconds=1 min minute minutes=60 h hr hrs hour hours=3600 day days=86400",
    "length": "mm millimeter=10 cm centimeter=100 m meter metre=10000 km kilometer=10000000"
    " in inch inches=254 ft foot feet=3048 yd yard=9144 mi mile=16093440",
    "mass": "mg=1 g gram=1000 kg kilogram=1000000",
}.items():
    _waiting: list[str] = []
    for _name in _names.split():
        _name, _, _factor = _name.partition("=")
        _waiting.append(_name)
        if _factor:
            UNITS |= {name: (_kind, int(_factor)) for name in _waiting}
            _waiting = []
