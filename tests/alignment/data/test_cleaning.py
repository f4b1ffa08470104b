"""Cleaning: prose is tidied, and what a script, an emoji or a program needs stays byte for byte."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import alignment
from alignment.data.cleaning import clean, is_code

PERSIAN = "می\u200cخواهم این کتاب\u200cها را بخوانم؛ خانه\u200cی ما کنار رودخانه است."
HINDI = "क्\u200dष और क्\u200cष अलग हैं; ल\u095cका प\u095dता है, \u0958लम मे\u095b पर है।"  # letters with a dot
EMOJI = "👨\u200d👩\u200d👧\u200d👦 👩🏽\u200d🚀 🏳️\u200d🌈 ❤️\u200d🔥"
FLAG = "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"
ALIGNED = "names  = [\"a  b\", 'c']   # two blanks\n\nvalue  = 1            # aligned\n"
TABLE = "void f(int  a)\n{\n\tint  long_name = 1;   /* one */\n\n\tint  b         = 2;   /* two */\n}\n"


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ("  a   b  ", "a b"),
        ("  a \t b\tc  ", "a\tb\tc"),
        ("a\r\nb\r\n\r\n\r\nc\rd", "a\nb\nc\nd"),
        ("a \n \n  b", "a\n  b"),
        ("One.  Two.\n\n    Three.", "One. Two.\n    Three."),
        ("\n    indented\n        more\n", "indented\n    more"),
        ("\u2067ab\u2069 ខ្ញុំ\u200bទៅ hy\xadphen", "\u2067ab\u2069 ខ្ញុំ\u200bទៅ hyphen"),
        ("\u200bab", "ab"),
        ("🫨🪿 \ue000\ufffe", "🫨🪿"),  # newer than some versions of Python know
        ("e\u0301 \u0958 e\u0301", "é \u0958 é"),
        ("a\x00b\u200b\ufeffc\x1b", "abc"),
        ("漢字 🎉 \ufa19", "漢字 🎉 \ufa19"),  # a compatibility ideograph of names
        (
            "Look:  this.\n\n```\na   =  1\n\n\nb = 2\n```\n\nGood,  no?",
            "Look: this.\n```\na   =  1\n\n\nb = 2\n```\nGood, no?",
        ),
        (" \n\t ", ""),
    ],
)
def test_cleaning(raw: str, wanted: str) -> None:
    assert clean(raw) == wanted
    assert clean(wanted) == wanted


@pytest.mark.parametrize("text", [PERSIAN, HINDI, EMOJI, FLAG, ALIGNED, TABLE, "def f(x):\n    if x:\n\treturn  1\n"])
def test_scripts_emoji_and_code_stay_byte_for_byte(text: str) -> None:
    assert clean(text).encode() == text.encode()


def test_every_module_with_functions_of_this_package_stays_byte_for_byte() -> None:
    modules = [path.read_text(encoding="utf-8") for path in Path(alignment.__file__).parent.rglob("*.py")]
    assert len(modules) > 80
    for text in modules:
        if "def " in text:
            assert clean(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "It was late.  She left;\nhe stayed.",
        "Where is the house?\n  It stands: there.\n  Look (closely)",
        "- milk\n- eggs\n\n- 2  loaves",
        "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer",
    ],
)
def test_prose_is_not_taken_for_code(text: str) -> None:
    assert not is_code(text)


@given(st.text(st.sampled_from("ab:{(#;=\n\t \u200b\u00a0é\u0301`क\u093c\u0958\u0e01\u0e38"), max_size=40))
@example("\u0301\u200b\u093c")
@example("\u0301\u0e38\u200b")
def test_cleaning_cleaned_text_changes_nothing_and_no_letter_is_lost(text: str) -> None:
    cleaned = clean(text)
    assert clean(cleaned) == cleaned
    letters = [c for c in text if c in "b:{(#;=`क\u0958"]
    assert [c for c in cleaned if c in "b:{(#;=`क\u0958"] == letters
