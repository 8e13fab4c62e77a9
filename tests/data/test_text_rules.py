"""Row rules over text: what each takes, changes and reports, and what it leaves alone."""

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorimer.data.boilerplate import Boilerplate, find_repeated_lines, strip_boilerplate
from lorimer.data.encoding import RepairEncoding, repair
from lorimer.data.example import Example, Message
from lorimer.data.information import LengthBounds, LowInformation, find_repetition
from lorimer.data.language import DetectLanguage, detect_language
from lorimer.data.passages import passages
from lorimer.data.remnants import TemplateRemnants, find_remnants, strip_markers
from lorimer.data.rules import Judged, RowRule
from lorimer.data.secrets import ProtectSecrets
from lorimer.data.toxicity import Toxicity
from lorimer.errors import ConfigError

RULES: tuple[RowRule, ...] = (
    RepairEncoding(),
    DetectLanguage(),
    TemplateRemnants(),
    Boilerplate(action="strip"),
    LowInformation(),
    LengthBounds(),
    Toxicity(),
    ProtectSecrets(),
)


def chat(prompt: str, answer: str, **known: str) -> Example:
    return Example(
        messages=(Message(role="user", content=prompt), Message(role="assistant", content=answer)), source="a.jsonl:1", tags=dict(known)
    )


def text(content: str) -> Example:
    return Example(text=content, source="a.jsonl:1")


# encoding


@pytest.mark.parametrize(
    ("broken", "meant"),
    [
        ("FranÃ§ois aime le cafÃ©", "François aime le café"),
        ("itâ€™s late â€“ go", "it’s late – go"),
        ("schÃ¶ne GrÃ¼ÃŸe", "schöne Grüße"),
        ("a\x00b\x07c", "abc"),
        ("\ufeffstart", "start"),
    ],
)
def test_encoding_is_repaired_with_a_note(broken: str, meant: str) -> None:
    judged = RepairEncoding()(chat(broken, "ok"))
    assert judged.example is not None
    assert judged.example.messages[0].content == meant
    assert judged.reason == "wrongly decoded text was repaired"


@pytest.mark.parametrize(
    "fine", ["naïve café, 5 µm “quoted” – fine", "Ünïcödé", "AT&amp;T", "日本語のテキスト", "ﬁne ｗｉｄｅ", "Đà Nẵng", "tab\tand\r\nline"]
)
def test_encoding_leaves_what_is_right(fine: str) -> None:
    assert repair(fine) == fine


def test_lost_characters_are_said_or_dropped() -> None:
    example = text("caf\ufffd is lost")
    assert RepairEncoding()(example) == Judged(example, "characters were lost (U+FFFD)")
    assert RepairEncoding(drop_lost=True)(example).example is None


# language


@pytest.mark.parametrize(
    ("said", "language"),
    [
        ("How do I cancel my order, please?", "en"),
        ("Wie kann ich meine Bestellung stornieren?", "de"),
        ("注文をキャンセルしたいのですが", "ja"),
        ("我想取消我的订单", "zh"),
        ("주문을 취소하고 싶습니다", "ko"),
        ("Làm thế nào để hủy đơn hàng?", "vi"),
        ("Как отменить мой заказ, пожалуйста?", "ru"),
        ("ok 123", ""),
    ],
)
def test_language_is_detected_where_there_is_enough_to_read(said: str, language: str) -> None:
    assert detect_language(said).language == language


def test_language_tags_keeps_and_reports() -> None:
    german = chat("Wie kann ich meine Bestellung stornieren?", "Klicken Sie bitte auf den Knopf dort oben.")
    tagged = DetectLanguage()(german)
    assert tagged.example is not None
    assert tagged.example.tags == {"language": "de"}
    assert DetectLanguage(keep=["en"])(german) == Judged(None, "reads as de")
    wrong = chat(german.messages[0].content, german.answer, language="en")
    assert DetectLanguage()(wrong) == Judged(wrong, "tagged en, reads as de")


def test_language_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match="'xx'"):
        DetectLanguage(keep=["xx"])
    with pytest.raises(ConfigError, match="candidates"):
        DetectLanguage(keep=["de"], candidates=["en", "fr"])


# remnants


@pytest.mark.parametrize(
    ("left", "clean"),
    [
        ("<|im_start|>user\nHello there<|im_end|>", "user\nHello there"),
        ("[INST] Hello there [/INST]", "Hello there"),
        ("### Instruction:\nAdd them up", "Add them up"),
        ("Blue.\n###eos_token###", "Blue."),
        ("<s>Hi</s>", "Hi"),
    ],
)
def test_markers_are_stripped(left: str, clean: str) -> None:
    assert strip_markers(left) == clean
    assert TemplateRemnants()(chat("q", left)).reason.startswith("marker")


@pytest.mark.parametrize(
    "answer",
    [
        "Dear {{Customer Name}},",
        "Hi {first_name}!",
        "call [Your Name] at",
        "Lorem ipsum dolor",
        "As an AI language model, I cannot",
        "mail <your email>",
    ],
)
def test_placeholders_in_answers_are_reported_or_dropped(answer: str) -> None:
    example = chat("q", answer)
    assert TemplateRemnants()(example).example is example
    assert TemplateRemnants()(example).reason
    assert TemplateRemnants(placeholders="drop")(example).example is None


@pytest.mark.parametrize(
    "answer", ["def f(name):\n    return f'{name}'", '{"name": "x", "city": "y"}', "a < b and [1] is cited; x<s>y<strike>", "use list[int]"]
)
def test_code_and_json_are_no_remnants(answer: str) -> None:
    assert find_remnants(answer) == []


def test_row_of_nothing_but_markers_is_taken_out() -> None:
    assert TemplateRemnants()(chat("q", "<|endoftext|>")) == Judged(None, "nothing but markers")


def test_dolly_rows_lose_their_markers(shared_data: Path) -> None:
    lines = (shared_data / "dolly_sample" / "dolly_151.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [chat(row["prompt"], row["answer"]) for row in map(json.loads, lines)]
    judged = [TemplateRemnants()(row).example for row in rows]
    assert sum("eos_token" in example.answer for example in rows) == 151
    assert not [example for example in judged if example is None or "eos_token" in example.answer or "### " in example.messages[0].content]


# boilerplate


@pytest.mark.parametrize(
    ("mail", "rest"),
    [
        ("Please refund me.\n\n-- \nJo\nACME Ltd\n+1 555", "Please refund me."),
        ("Please refund me.\nSent from my iPhone", "Please refund me."),
        ("Done.\nThis email and any attachments are confidential and for the addressee alone.", "Done."),
        ("News!\n© 2021 ACME Ltd. All rights reserved.", "News!"),
        ("News!\nClick here to unsubscribe from our letters.", "News!"),
        ("News!\nTo unsubscribe, write to us.", "News!"),
        ("News!\nYou are receiving this email because you asked.", "News!"),
        ("News!\nManage your email preferences", "News!"),
        ("Hi\nGesendet von meinem Telefon", "Hi"),
        ("Hi\nEnvoyé de mon iPhone", "Hi"),
        ("Hi\nGet Outlook for Android", "Hi"),
        ("Hi\n--", "Hi"),
        ("Hi\nCONFIDENTIALITY NOTICE: for you alone", "Hi"),
        ("Hi\nDiese E-Mail enthält vertrauliche Angaben.", "Hi"),
        ("Hi\nThis message may contain privileged matters.", "Hi"),
        ("Hi\nWe use cookies to please you.", "Hi"),
        ("Hi\nPlease enable JavaScript.", "Hi"),
        ("Hi\nTerms of Use | Privacy Policy", "Hi"),
        ("Hi\n(c) 2020 by us", "Hi"),
        ("Where is the privacy policy that you speak of?", "Where is the privacy policy that you speak of?"),
    ],
)
def test_boilerplate_is_stripped(mail: str, rest: str) -> None:
    assert strip_boilerplate(mail) == rest


def test_repeated_lines_are_found_over_a_set_and_stripped() -> None:
    footer = "Our lines are open from nine to five."
    texts = [f"Question number {index}?\n{footer}" for index in range(40)] + ["Alone, it says so.\nAnd again it does not."]
    found = find_repeated_lines(texts)
    assert found == [(footer, 40)]
    rule = Boilerplate(action="strip", lines={footer})
    assert rule(chat(texts[0], "ok")).example == chat("Question number 0?", "ok")


# information


@pytest.mark.parametrize(
    ("prompt", "answer", "reason"),
    [
        ("What now?", "...", "nothing is said"),
        ("What now?", "N/A", "the answer is 'N/A'"),
        ("How do I cancel it?", "how do I  cancel it?", "the answer repeats the prompt"),
        ("Go", "loooooooooooooooooool", "'o' 19 times in a row"),
        ("Go", "very " * 20 + "much indeed, so much", "'very' is 20 of 24 words"),
    ],
)
def test_low_information_is_dropped_with_its_reason(prompt: str, answer: str, reason: str) -> None:
    assert LowInformation()(chat(prompt, answer)) == Judged(None, reason)


def test_low_information_keeps_short_labels_and_tables() -> None:
    for answer in ("yes", "42", "B", "{}1", "| a | b |\n|-----------------|---|"):
        assert LowInformation()(chat("Which one of them is it?", answer)).reason == ""
    assert LowInformation(keep_answers=["none"])(chat("Which tool?", "none")).reason == ""


def test_gopher_rules_apply_to_long_texts() -> None:
    assert find_repetition("the quick brown fox jumps. " * 30)
    lines = "\n".join(["Buy now and save a lot of money today"] * 12)
    assert any("lines repeat" in reason for reason in find_repetition(lines))


def test_real_answers_are_rarely_of_low_information(shared_data: Path) -> None:
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [chat(row["question"], row["answer"]) for row in map(json.loads, lines)]
    assert sum(bool(LowInformation().judge(row)) for row in rows) <= 0.01 * len(rows)


def test_length_bounds() -> None:
    rule = LengthBounds(min_prompt=3, max_answer=5)
    assert rule(chat("abc", "12345")).reason == ""
    assert rule(chat("ab", "1")) == Judged(None, "the prompt has 2 characters, fewer than 3")
    assert rule(chat("abc", "123456")) == Judged(None, "the answer has 6 characters, more than 5")
    with pytest.raises(ConfigError, match="in order"):
        LengthBounds(min_answer=9, max_answer=5)


# toxicity


@pytest.mark.parametrize(
    ("said", "kind"), [("this goddamn item", "profanity"), ("you idiot", "insult"), ("I'll kill you", "threat"), ("F*ck it", "profanity")]
)
def test_toxic_words_are_flagged(said: str, kind: str) -> None:
    example = chat(said, "sorry")
    assert Toxicity()(example).example is example
    assert Toxicity()(example).reason.startswith(kind)


@pytest.mark.parametrize(
    "said", ["Scunthorpe and Essex", "a classic assessment", "the damnation of Faust by dickens", "hello", "cocktail shitake"]
)
def test_words_inside_words_are_not_flagged(said: str) -> None:
    assert Toxicity()(chat(said, "ok")).reason == ""


def test_toxicity_takes_more_words_and_refuses_unknown_kinds() -> None:
    rule = Toxicity(action="drop", kinds=("own",), words={"own": ("blimey",)})
    assert rule(chat("Blimey!", "ok")).example is None
    with pytest.raises(ConfigError, match="'rude'"):
        Toxicity(kinds=("rude",))


# all of them


@given(st.lists(st.text(min_size=1, max_size=120), min_size=2, max_size=2))
def test_every_rule_judges_strangers_rows_and_never_empties_one(contents: list[str]) -> None:
    example = chat(*contents)
    for rule in RULES:
        judged = rule(example)
        assert judged.example is not None or judged.reason
        if judged.example is not None and judged.example is not example:
            assert judged.reason
            if all(content.strip() for content in contents):
                assert all(passages(judged.example))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rules_pickle(rule: RowRule) -> None:
    example = chat("FranÃ§ois says damn", "hello {{name}}")
    assert pickle.loads(pickle.dumps(rule))(example) == rule(example)
