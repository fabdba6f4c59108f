r"""What is the same answer and what isn't, kind by kind, and that no string of any content hurts.

The pairs are judged by hand: what a mathematician who marks the paper would say. Changed answers
(another digit, sign, order, base, unit, letter) are wrong by construction.
"""

# ruff: noqa: E501, SIM905 - rows of a table stay rows

from __future__ import annotations

import random
import re
import time

import psutil
import pytest

from npr_lib import verify
from npr_lib.verify import Policy, math_equal, verdict

# kind -> (the answer, what says the same, what doesn't)
PAIRS: dict[str, tuple[tuple[str, list[str], list[str]], ...]] = {
    "integers": (
        (
            "204",
            ["204.", " $204$ ", "２０４", "**204**", r"\color{red}{204}", "~204", r"\boxed{204}",
             r"\text{Answer: }204", "204\u200b", "x=204", "203+1", "m+n=204", r"$\boxed{204}$", r"\mathbf{204}\text{ triangles}", r"N \equiv 204 \pmod{1000}"],
            ["205", "-204", "204_5", r"204\%", "204!", "2 04", "=204", "204=", "4=204", "204x",
             r"\neg 204", r"\pm 204", "204 or 205", "204, 205", r"204 \text{ if } n>3, 5 \text{ else}",
             r"204\text{ million}", r"204\text{ or more}", r"204\text{ is wrong}", r"204\ldots", r"204 \bmod 7",
             "x=3=204", r"\pi=204", r"204!!"],
        ),
        ("10,080", ["10080"], ["10,80", "80,10", "10 and 80"]),
        (r"3\text{ million}", ["3000000", r"3\times 10^6"], ["3"]),
        ("58{,}500", ["58,500", "58500", r"58\,500", "58 500"], ["58, 501", "58.500", "585000"]),
        ("073", ["73", "73.0"], ["730", "37"]),
        ("7", [r"\text{seven}", "seven", "|-7|", r"\sqrt{49}"], ["-7", r"\text{seventy}"]),
    ),
    "fractions and decimals": (
        (
            r"\frac{3}{56}",
            ["3/56", r"\dfrac{3}{56}", r"\sfrac{3}{56}", "^3/_{56}", r"\frac3{56}", r"\frac{6}{112}"],
            [r"\frac{56}{3}", "3", "0.0535", r"-\frac{3}{56}"],
        ),
        ("1.25", ["1 1/4", r"1\frac14", r"\frac54", "1.250", "1¼"], ["1.2", "125", "5 20/3"]),
        ("-2.5", [r"-2\frac{1}{2}", "-5./2"], [r"2\frac12", "-1.5"]),
        (r"\frac{3}{11}", [r"0.\overline{27}", r"0.\overline{2727}"], ["0.27", "0.272727"]),
        (r"\frac13", [r"0.\overline{3}", r"\frac{2}{6}"], ["0.333333", "0.3"]),
    ),
    "small and large": (
        (
            r"1.6\times10^{-19}",
            ["1.6e-19", "1.6E-19", r"16\cdot 10^{-20}", "1.60×10^{-19}"],
            [r"9.1\times10^{-31}", r"-1.6\times10^{-19}", r"1.7\times10^{-19}", "0"],
        ),
        ("4.5e33", [r"4.5\times 10^{33}", r"4.5\times10^{33}\text{ erg/s}"], ["4.5", "4.5e32"]),
        (r"\frac{1}{2^{60}}", [r"2^{-60}", r"4^{-30}"], [r"\frac{3}{2^{60}}", r"-\frac{1}{2^{60}}"]),
        (r"1-\frac{2}{900!}", [r"1-\frac{2}{900\cdot 899!}"], [r"1+\frac{2}{900!}", "1"]),
        (r"e^{-40}", [r"\frac{1}{e^{40}}", r"\exp(-40)"], [r"e^{-41}", "0"]),
        ("2^{1009}", [r"4^{504}\cdot 2", "2^{1010}-2^{1009}", "2^{1009}."], ["2^{1009}+1"]),
    ),
    "percent, money, degrees": (
        (r"28\%", ["28%", "28 percent", "28", "0.28", r"\frac{7}{25}", r"28\,\%"], ["2800", "2.8"]),
        ("12.5", ["12.50"], [r"12.5\%"]),
        (r"\$36", ["36", "USD 36", r"\text{\$}36", "36 dollars", r"\$36.00"], [r"\$3.6", "€36"]),
        (r"90^\circ", ["90", "90°", r"90\degree", "90 degrees", r"\frac{\pi}{2}"], ["9", "90 radians"]),
        (r"\cos 20^\circ", [r"\cos(20^\circ)", r"\cos\frac{\pi}{9}"], [r"\cos 20", "20"]),
    ),
    "units": (
        (
            r"15\text{ cm}^2",
            ["15 cm^2", "15", r"15\,\mathrm{cm}^2", r"15\text{ cm}^{2}."],
            [r"15\text{ m}^2", r"15\text{ cm}", r"16\text{ cm}^2", "225"],
        ),
        (
            r"3\text{ hours }20\text{ minutes}",
            ["200 minutes", "3 hr 20 min", r"200\text{ min}"],
            [r"3\text{ hours }30\text{ minutes}", "3 hours", "200 hours"],
        ),
        (r"5\text{ MW}", ["5 MW", "5"], [r"5\text{ mW}"]),
        (r"5\text{ m}", [r"5\text{ meters}", "500 cm"], [r"5\text{ ms}"]),
        (r"15\text{ cm}^2", [r"15\text{ square centimeters}", "15 sq cm"], ["15 cm"]),
        (r"10\text{ cm}", [r"0.1\text{ m}", "100 mm"], [r"10\text{ m}", r"10\text{ kg}"]),
        (r"60\text{ mph}", ["60"], [r"60\text{ mph and }70\text{ mph}", r"60\text{ kmh}"]),
        ("10:30", [r"10{:}30", "10:30 AM", r"10\!:\!30"], [r"\frac13", "10.3", "10:31"]),
    ),
    "formulas": (
        (
            r"\frac{n(n+1)}{2}",
            [r"\sum_{k=1}^n k", r"\frac n2(n+1)", r"\binom{n+1}{2}", "n(n+1)/2"],
            [r"\frac{n(n-1)}{2}", r"\frac{m(m+1)}{2}", r"\frac{N(N+1)}{2}", r"\frac{n^2}{2}"],
        ),
        ("N/2", [r"\frac{N}{2}", "0.5N"], ["n/2", "N", r"\frac{2}{N}"]),
        (r"\frac12E_0", [r"\frac{E_0}{2}", r"0.5 E_{0}"], [r"\frac12", r"\frac12E_1", r"\frac12e_0"]),
        ("ab", ["ba", r"a\cdot b"], ["AB", "a+b"]),
        ("x^2-3x+2", ["(x-1)(x-2)", "f(x)=x^2-3x+2"], ["x^2+3x+2", "y^2-3y+2", "2"]),
        (r"2\sqrt2", [r"\sqrt8", "2√2", "2^{3/2}"], [r"-2\sqrt2", r"\sqrt2", "2.83"]),
        (r"\lfloor x\rfloor", [r"\left\lfloor x \right\rfloor"], ["x", r"\lceil x\rceil", "0"]),
        (r"\lceil n/2 \rceil", [r"\lfloor\frac{n+1}{2}\rfloor"], [r"\lfloor n/2\rfloor", "n/2"]),
        (r"\lfloor\frac{n^2}{100}\rfloor", [r"\lfloor 0.01n^2\rfloor"], ["0", r"\lfloor\frac{n^2}{101}\rfloor"]),
        ("|x-100|", ["|100-x|"], ["100-x", "x-100"]),
        ("x+10^{-30}", ["10^{-30}+x"], ["x", "x+10^{-31}"]),
        ("(x+10)^{50}+1", ["1+(10+x)^{50}"], ["(x+10)^{50}"]),
        (r"\sum_{k=1}^n k^2", [r"\sum_{i=1}^n i^2", r"\frac{n(n+1)(2n+1)}{6}"], [r"\sum_{k=1}^n k"]),
        (r"\frac{14}{3}", [r"\frac{14}{3}\approx 4.67", "14/3", r"{14 \over 3}", r"4\tfrac23"], [r"\frac{14}{3}\ldots", "4.67"]),
        (r"2\sqrt{3}\pi", ["2*sqrt(3)*pi", "2√3π"], ["2sqrt(3)"]),
        ("|x|", [r"\sqrt{x^2}"], ["x", "-x"]),
        (r"\binom{10}{3}", ["120", "{}_{10}C_3", "C_{10}^{3}", "C(10,3)"], ["30", r"\frac{10}{3}"]),
        (r"\ln 2", [r"\log_e 2", r"-\ln\frac12", r"\ln\left(2\right)"], [r"\log_{10} 2", "0.693"]),
        ("3+4i", [r"3+4\mathrm{i}", "(2+i)^2", "4i+3"], ["3-4i", "7", "3+4j"]),
        (r"\lfloor \frac{n}{2} \rfloor", [r"\left\lfloor n/2\right\rfloor"], [r"\lfloor\frac{n+1}{2}\rfloor"]),
        (r"\int_0^1 x\,dx", [r"\frac12"], ["1", "2"]),
    ),
    "lists, sets, tuples": (
        (r"\{1,2,3\}", ["3, 1, 2", "1, 2, and 3", r"\lbrace 1,2,3\rbrace"], ["1,2", "1,2,3,4", "123", r"\{1,2,\ldots\}", "(1,2,4)"]),
        ("2,2,3", ["3,2,2"], ["2,3,3", "2,3"]),
        ("a=2,b=3", ["2,3", "b=3,a=2", "(a,b)=(2,3)"], ["3,2", "a=3,b=2"]),
        (r"\emptyset", [r"\varnothing", r"\{\}"], [r"\{\emptyset\}", "0"]),
        (r"\begin{vmatrix}1&2\\3&4\end{vmatrix}", [], [r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"]),
        (r"\pm 17", ["17, -17", r"x=\pm17"], ["17", "-17"]),
        (r"(3, \frac{\pi}{2})", [r"\left(3,\pi/2\right)", r"\big(3, \frac{\pi}{2}\big)."], [r"(\frac{\pi}{2},3)", "3"]),
        (r"\begin{pmatrix} -2 \\ 14 \end{pmatrix}", [r"\langle -2,14\rangle", "(-2,14)", r"\begin{bmatrix}-2\\14\end{bmatrix}"], ["(14,-2)", "12"]),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", [r"\left[\begin{array}{cc}1&2\\ \frac62&4\end{array}\right]"], [r"\begin{pmatrix}1&2\\4&3\end{pmatrix}", "-2"]),
        ("(1,2),(3,4)", [r"(3,4)\text{ and }(1,2)", r"\{(1,2),(3,4)\}"], ["1,2,3,4", "(2,1),(3,4)"]),
        (r"['$2$', '$3$']", ["2,3"], ["2", "3"]),
        (r"\begin{cases}1&n\text{ odd}\\0&n\text{ even}\end{cases}", [r"\begin{cases}0&n\text{ even}\\1&n\text{ odd}\end{cases}"], [r"\begin{cases}1&n\text{ even}\\0&n\text{ odd}\end{cases}", "0"]),
    ),
    "intervals": (
        ("[2,5)", [r"2\le x<5", r"[2,5[", r"x\in[2,5)"], ["(2,5]", "[2,5]", "2,5", "2<x<5"]),
        (r"(-\infty,2)\cup(3,\infty)", [r"x<2 \text{ or } x>3", r"(3,\infty)\cup(-\infty,2)"], [r"x<2 \text{ and } x>3", r"(-\infty,2]\cup(3,\infty)"]),
        (r"(2,12)\cup(12,102)", [r"2<x<102, x\neq 12"], ["2<x<102"]),
        ("[2,5]", [r"\{x: 2\le x\le 5\}"], ["2,5", "2 or 5"]),
        (r"\mathbb{R}\setminus\{2\}", [r"(-\infty,2)\cup(2,\infty)", r"x\ne 2"], [r"\mathbb{R}", "2"]),
        (r"x\ge 3", [r"x\in[3,\infty)","x≥3", r"3\le x", r"[3,\infty)"], ["x>3", "3", "x=3", r"y\ge 3"]),
    ),
    "equations and congruences": (
        ("2x+3y-5=0", [r"y=-\frac23x+\frac53", "-2x-3y+5=0"], ["2x+3y+5=0", "x=2y+3"]),
        ("y=2x+3", ["2x+3", "y-3=2x"], ["y=2x-3", "y=3x+2", "x=2y+3"]),
        ("x=5", ["5", "5=x"], ["y=5", "x=-5", "x>5"]),
        (r"n\equiv 3\pmod 5", [r"n\equiv 8 \bmod 5", r"n \equiv 3 \mod{5}"], [r"n\equiv 3\pmod 7", r"m\equiv 4\pmod 5", "n=5", r"m\equiv 3\pmod 5"]),
    ),
    "bases and ratios": (
        ("4210_5", ["4210_{5}", "(4210)_5", r"4210_{\text{five}}"], ["4210_6", "4210", "4210_b", "421_5"]),
        ("3:4", [r"3{:}4", r"3 \colon 4"], ["4:3", "3:5", "3:4:5", "3"]),
    ),
    "letters and words": (
        (r"\text{(B)}", ["B", "(B)", "B.", "B)", r"\textbf{(B)}\ 12", r"\text{Option B}", "B: twelve"], ["A", "C. 12", "B. No, A", "B: A", "B) is wrong", r"\text{A or B}", "B or C", "B+1", "b"]),
        (r"\text{Evelyn}", ["Evelyn", "evelyn."], ["Evenly", r"\text{not Evelyn}", "Eve", "Evelyn and Bo"]),
        ("north east", [r"\text{north east}", "North-East"], ["east north", "north", "north west"]),
        ("no", [r"\text{No.}"], ["on", "yes"]),
        (r"5\text{ red and }9\text{ blue}", [r"5 \text{ red and } 9 \text{ blue}"], [r"5\text{ red and }7\text{ blue}", "5"]),
        (r"\text{All } n \text{ with } 3 \nmid n", [r"\text{all }n\text{ with }3\nmid n"], ["3", r"\text{All }n"]),
        (r"2^{\aleph_0}", [r"2^{\aleph_{0}}"], [r"3^{\aleph_0}", "0"]),
    ),
}  # fmt: skip  # fmt: off
ALL = [
    (answer, found, True) for kind in PAIRS.values() for answer, same, _ in kind for found in same
]
ALL += [
    (answer, found, False)
    for kind in PAIRS.values()
    for answer, _, other in kind
    for found in other
]


@pytest.mark.parametrize(("answer", "found", "right"), ALL)
def test_pairs(answer: str, found: str, right: bool) -> None:
    assert math_equal(found, answer) is right


@pytest.mark.parametrize("answer", [answer for kind in PAIRS.values() for answer, _, _ in kind])
def test_an_answer_is_itself_and_so_it_is_with_what_is_around_it(answer: str) -> None:
    if answer.startswith("['"):  # a list as Python prints it ends with its bracket
        assert math_equal(answer, answer)
        return
    for found in (answer, f"{answer}.", f"${answer}$", f" {answer} ", f"\\({answer}\\)"):
        assert math_equal(found, answer)


def changed(answer: str, draw: random.Random) -> str:
    """The answer with one digit, sign or letter changed, or a number more: another answer."""
    kind = draw.choice(["digit", "sign", "letter", "more"])
    digits = [m.start() for m in re.finditer(r"[0-9]", answer)]
    if kind == "digit" and digits:
        i = draw.choice(digits)
        return (
            answer[:i] + draw.choice([d for d in "123456789" if d != answer[i]]) + answer[i + 1 :]
        )
    signs = [m.start() for m in re.finditer(r"[+-]", answer)]
    if kind == "sign" and signs:
        i = draw.choice(signs)
        return answer[:i] + ("-" if answer[i] == "+" else "+") + answer[i + 1 :]
    letters = [m.start() for m in re.finditer(r"(?<![\\a-zA-Z{])[a-hj-z](?![a-zA-Z}])", answer)]
    if kind == "letter" and letters:
        i = draw.choice(letters)
        return answer[:i] + ("q" if answer[i] != "q" else "r") + answer[i + 1 :]
    return f"{answer}, 98765"


def test_changed_answers_are_wrong() -> None:
    # made of parts, so that each change of a digit, a sign or a letter is another answer
    draw = random.Random(0)
    makers = [
        lambda n: f"{n()}x^2-{n()}x+{n()}",
        lambda n: f"\\frac{{{2 * n() + 1}}}{{{1 << n()}}}",
        lambda n: f"({n()}, -{n()})",
        lambda n: f"{n()}\\sqrt{{{draw.choice([2, 3, 5, 7])}}}-{n()}",
        lambda n: f"{n()}.{n()}\\times 10^{{-{n() + 9}}}",
        lambda n: f"{n() * 111}",
        lambda n: f"{n()}\\text{{ cm}}",
        lambda n: f"y={n()}x+{n()}",
        lambda n: f"[{n()},{n() + 20})",
    ]
    for _ in range(1000):
        answer = draw.choice(makers)(lambda: draw.randint(2, 9))
        assert math_equal(answer, answer)
        other = changed(answer, draw)
        if answer.startswith("y=") and other.startswith("q="):
            continue  # the same line, of another name: judged in "equations"
        assert not math_equal(other, answer), (other, answer)


PIECES = (
    "9^{9^{9^9}} ( ) { } \\frac \\frac{1}{0} \\sqrt [ ] x ^ _ \\sum_{k=1}^{999999999} k^k ! 1000000!"
    " \\binom{99999}{50000} \\left( \\right) \\text{ \\boxed{ $ \\\\ & \\begin{pmatrix} \\end{pmatrix} 0"
    " - 10^{10^{10}} \\infty \\log \\sin \\pm \u202e \0 😀 é | \\lfloor = < \\equiv \\pmod{0} i e % , and"
    " \\overline{ e^{e^{e^{e}}} \\tan(\\frac{\\pi}{2}) 0^0 0^{-1} \\ln 0 \\gcd(0,0) \ud800"
).split(" ")
PIECES += ["2" * 300, "1/" * 50, "x^" * 30, "\\frac{1}{" * 40, "(" * 60, "1,234," * 20]


def hostile(count: int) -> None:
    """Verdicts on strings of such pieces, also as answers; nothing is left behind."""
    draw = random.Random(1)
    golds = ["5", r"\frac{1}{2}", "x^2+1", "(1,2)", "[0,1)", r"\text{yes}", "2^{100}", "n!"]
    for _ in range(count):
        found = "".join(draw.choice(PIECES) for _ in range(draw.randint(1, 8)))
        answer = draw.choice(golds)
        if draw.random() < 0.2:
            answer = "".join(draw.choice(PIECES) for _ in range(draw.randint(1, 4)))
        if answer.strip():
            assert verdict(found, answer) in (True, False, None)
    assert len(psutil.Process().children(recursive=True)) <= 1


def test_hostile_strings() -> None:
    began = time.monotonic()
    hostile(300)
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_ten_thousand_hostile_strings() -> None:
    began = time.monotonic()
    hostile(10_000)
    assert time.monotonic() - began < 120


def test_what_can_not_be_compared_is_told_from_what_is_wrong() -> None:
    assert verdict("4", "5") is False
    assert verdict("\\frac{", "5") is False  # a wrong answer, though it can't be read
    assert verdict("5", r"\mathfrak{g}\oplus 5") is None
    assert verdict(r"\mathfrak{g}\oplus 5", r"\mathfrak{g} \oplus 5.") is True
    assert verify.unreadable("5") is None
    assert "mathfrak" in str(verify.unreadable(r"\mathfrak{g}\oplus 5"))


@pytest.mark.parametrize(
    ("policy", "answer", "found", "right"),
    [
        (Policy(tolerance=0.01), "3.14", "3.15", True),
        (Policy(tolerance=0.01), "3.14", "3.2", False),
        (Policy(tolerance=0.01), "1e-20", "2e-20", False),
        (Policy(units="required"), r"10\text{ cm}", "10", False),
        (Policy(units="required"), r"10\text{ cm}", "10 cm", True),
        (Policy(units="ignored"), r"10\text{ cm}", r"10\text{ kg}", True),
        (Policy(percent="unit"), "12.5", r"12.5\%", True),
        (Policy(ordered=True), "1,2", "2,1", False),
        (Policy(ordered=True), "1,2", "1,2", True),
    ],
)
def test_policies(policy: Policy, answer: str, found: str, right: bool) -> None:
    assert math_equal(found, answer, policy=policy) is right


def test_a_policy_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="units must be"):
        Policy(units="sometimes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tolerance"):
        Policy(tolerance=2)


def test_choice() -> None:
    options = ["12 cm", "14 cm", "16 cm", "18 cm"]
    for found in ("B", "(B)", "B.", r"\text{B}", "B) 14 cm", "Option B", "14 cm"):
        assert verify.choice(found, "B", options)
    for found in ("A", "b c", "16 cm", "B or C", "", "14"):
        assert not verify.choice(found, "B", options)
    with pytest.raises(ValueError, match="letter A-J"):
        verify.choice("B", "14 cm")


def test_words() -> None:
    assert verify.words(r"\text{North, east}", "north east")
    assert not verify.words("east north", "north east")
    assert verify.words("east north", "north east", order=False)
    assert not verify.words("North", "north", case=True)
    assert not verify.words("", "north") and not verify.words("north", "")


def test_grid() -> None:
    table = '{"header": ["House", "Name", "Pet"], "rows": [["1", "Eric", "cat"], ["2", "Arnold", "dog"]]}'
    assert verify.grid(table, table)
    assert verify.grid(
        '{"House 2": {"Name": "arnold", "Pet": "Dog"}, "House 1": {"Name": "Eric", "Pet": "cat"}}',
        table,
    )
    assert verify.grid(table.replace('"', '\\"').replace("{", "\\{").replace("}", "\\}"), table)
    assert not verify.grid(table.replace("cat", "dog"), table)
    for found in (
        "",
        "[]",
        "{",
        '{"header": 1, "rows": 2}',
        '{"House 1": {"Name": "Eric", "Pet": "cat"}}',
        "[" * 9999,
        '{"header": [], "rows": [[]]}',
        '{"House 1": ' + "9" * 5000 + "}",
        table.replace('["1",', '["2", "Arnold", "cat"], ["1",'),
    ):
        assert not verify.grid(found, table)
    with pytest.raises(ValueError, match="table in JSON"):
        verify.grid(table, "Eric")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("So the answer is 42.", "42"),
        ("The answer is: x+1\nindeed 7", "x+1"),
        ("we get 3, then 1,204.5 at last", "1204.5"),
        ("nothing", None),
    ],
)
def test_last_number(text: str, found: str | None) -> None:
    assert verify.last_number(text) == found
