"""Claims of an answer held against a text; abstention, and its other side."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorimer.data.example import Message
from lorimer.evaluation.scorers.abstention import find_abstention
from lorimer.evaluation.scorers.catalogue import SCORERS
from lorimer.evaluation.scorers.claims import Date, Source, dates_in, find_claims, mentions, readings, unsupported
from lorimer.evaluation.scorers.fidelity import LANGUAGES, abstains, finds_answer, grounded
from lorimer.evaluation.task import Sample

SHOP = (
    "Harbour Cycles in Kirkwall rents out bicycles from 1 April to 31 October. A city bicycle costs 14 euros and an electric one 1,032.50 "
    "euros. Bookings are taken by Morag Sinclair at hire@harbourcycles.example. Peter Weber leaves at 07:25 on Mondays."
)
HOUSE = "Die Stadtwerke Lindau tauschen vom 3. bis zum 14. Juni die Zähler. Frau Ewa Kessler hilft. Der Tausch dauert fünf Minuten."


def sample(context: str = SHOP, question: str = "What does it cost?", target: str = "", **spec: object) -> Sample:
    return Sample(id="x", prompt=(Message(role="user", content=question),), target=target, spec={"context": context, **spec})


@pytest.mark.parametrize(
    ("answer", "made_up", "num_claims"),
    [
        ("It costs 14 euros.", [], 1),
        ("It costs fourteen euros.", [], 1),
        ("It costs 15 euros.", ["15"], 1),
        ("An electric one is 1.032,50 euros.", [], 1),
        ("An electric one is 1032.5 euros.", [], 1),
        ("Peter Weber leaves at 7:25.", [], 2),
        ("Peter Weber leaves at 7:35.", ["7:35"], 2),
        ("He leaves on Monday.", [], 1),
        ("He leaves on Tuesday.", ["Tuesday"], 1),
        ("Bookings are taken by Morag Sinclair.", [], 1),
        ("Ask Morag Sinclair's office.", [], 1),
        ("Ask Morag Weber.", ["Ask Morag Weber"], 1),  # two halves of two people
        ("The owner is Anna.", ["Anna"], 1),
        ("Kirkwall Harbour Cycles is open.", [], 1),
        ("Open from April 1 to October 31.", [], 2),
        ("Open from 2 April.", ["2 April"], 1),
        ("Open from 1 April 2031.", ["1 April 2031"], 1),
        ("Write to hire@harbourcycles.example.", [], 1),
        (
            "Write to info@harbourcycles.example or see https://cycles.example/x.",
            ["info@harbourcycles.example", "https://cycles.example/x"],
            2,
        ),
        ('It says "from 1 April to 31 October".', [], 1),
        ('It says "we never close at all".', ['"we never close at all"'], 1),
        ('The "price" is fair.', [], 0),
        ("1. Come by.\n2. Pay.\n3. Ride.", [], 0),
        ("# Summary Of Prices\nIt costs 14 euros.", [], 1),
        ("Dear Customer, I'm glad to help. Yours sincerely", ["Customer"], 1),
        ("WE ARE CLOSED ON FRIDAYS IN LONDON", [], 0),
        ("The shop is popular.", [], 0),
        ("", [], 0),
    ],
)
def test_claims_that_a_text_does_not_bear_out(answer: str, made_up: list[str], num_claims: int) -> None:
    found, count = unsupported(answer, Source(SHOP))
    assert ([claim.text for claim in found], count) == (made_up, num_claims)


@pytest.mark.parametrize(
    ("answer", "made_up"),
    [
        ("Die Zähler werden ab dem 3. Juni getauscht, das Wasser bleibt an.", []),  # nouns are no names
        ("Am 4. Juli geht es los.", ["4. Juli"]),
        ("Der Tausch dauert 5 Minuten.", []),
        ("Der Tausch dauert sechs Minuten.", ["sechs"]),
        ("Frau Kessler hilft.", []),
        ("Es hilft Herr Ewald Brunner.", ["Ewald Brunner"]),
    ],
)
def test_claims_in_german(answer: str, made_up: list[str]) -> None:
    found, _ = unsupported(answer, Source(HOUSE, "de"))
    assert [claim.text for claim in found] == made_up


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("on 3 May 2026", Date(3, 5, 2026)),
        ("on May 3rd, 2026", Date(3, 5, 2026)),
        ("on the 3rd of May", Date(3, 5)),
        ("am 3. Mai 2026", Date(3, 5, 2026)),
        ("le 1er mai 2026", Date(1, 5, 2026)),
        ("el 3 de mayo de 2026", Date(3, 5, 2026)),
        ("il 3 maggio", Date(3, 5)),
        ("2026-05-03", Date(3, 5, 2026)),
        ("03.05.2026", Date(3, 5, 2026)),
    ],
)
def test_a_day_is_read_however_it_is_written(text: str, date: Date) -> None:
    assert [found for found, _ in dates_in(text)] == [date]


@pytest.mark.parametrize(
    ("figures", "meant"),
    [
        ("14", {"14"}),
        ("007", {"7"}),
        ("1,240", {"1240", "1.24"}),
        ("4,50", {"4.5"}),
        ("1.240.000", {"1240000"}),
        ("3.8.1", {"3.8.1"}),
        ("07:05", {"7:05"}),
    ],
)
def test_readings_of_a_number(figures: str, meant: set[str]) -> None:
    assert readings(figures) == meant


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("It costs 14 euros.", 1.0),
        ("A bicycle costs 14 euros, a trailer 9.", 0.5),
        ("It is cheap.", 0.0),  # it was asked for the price
        ("", 0.0),
        ("\n ...", 0.0),
    ],
)
def test_grounded(answer: str, value: float) -> None:
    assert grounded(answer, sample(facts=["14", "1,032.50"])).value == value


def test_what_the_question_says_is_not_made_up() -> None:
    asked = sample(question="Does Bruno get a discount of 20 percent?")
    assert grounded("Bruno gets no discount of 20 percent.", asked).value == 1.0
    assert grounded("Bruno gets 30 percent.", asked).explanation == "not in the context: number '30'"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"context": ""}, "no context"),
        ({"context": "a", "language": "xx"}, "'xx', not one of en, de"),
        ({"context": "a", "facts": ["!"]}, "facts"),
    ],
)
def test_what_cannot_be_judged_is_unscored(spec: dict[str, object], words: str) -> None:
    asked = Sample(id="x", prompt=(), target="a", spec=spec)
    for scorer in (grounded, abstains):
        found = scorer("It costs 14 euros.", asked)
        assert found.value is None
        assert words in found.explanation
    assert finds_answer("a", Sample(id="x", prompt=(), target="?")).value is None


ABSTENTIONS = {
    "en": (
        "Not stated.", "The text does not say.", "The text doesn't say how many.", "It isn't stated.", "I don't know.",
        "I do not know that.",
        "That is not mentioned.", "It can't be determined.", "There is no information about this.", "The number is unknown.",
        "It is not given in the text.", "The passage does not include the price.",
    ),
    "de": (
        "Nicht angegeben.", "Das steht nicht im Text.", "Der Text nennt keinen Preis.", "Das geht aus dem Text nicht hervor.",
        "Das weiß ich nicht.",
    ),
    "fr": ("Non indiqué.", "Le texte ne le dit pas.", "Le texte n\u2019indique pas le prix.", "Je ne sais pas.", "Aucune information."),
    "es": ("No indicado.", "El texto no lo menciona.", "No se sabe.", "No hay información.", "No lo sé."),
    "it": ("Non indicato.", "Il testo non lo dice.", "Non lo so.", "Nessuna informazione."),
}  # fmt: skip
ANSWERS = [
    "14 euros.", "No.", "The book is not included in the price.", "Breakfast is not provided.", "Children do not pay.", "It does not stop.",
    "Der Preis enthält kein Frühstück.", "Der Aufzug steht nicht zur Verfügung.", "On ne peut pas entrer.", "Non, c'est fermé.",
    "No puede llevar perros.", "Non può portare cani.", "",
]  # fmt: skip


@pytest.mark.parametrize(("language", "text"), [(language, text) for language, texts in ABSTENTIONS.items() for text in texts])
def test_an_abstention_is_known_in_five_languages(language: str, text: str) -> None:
    assert find_abstention(text) is not None
    assert abstains(text, sample(language=language)).value == 1.0
    assert finds_answer(text, sample(target="14", language=language)).value == 0.0


@pytest.mark.parametrize("text", ANSWERS)
def test_an_answer_is_no_abstention(text: str) -> None:
    assert find_abstention(text) is None
    assert abstains(text, sample()).value == 0.0


def test_to_abstain_and_guess_all_the_same_is_wrong() -> None:
    found = abstains("The text does not say, but it is 90 euros.", sample())
    assert (found.value, found.explanation) == (0.0, "abstains, and guesses: not in the context: number '90'")


@pytest.mark.parametrize(
    ("answer", "target", "is_right"),
    [
        ("It is Morag Sinclair.", "Sinclair", True),
        ("fourteen euros", "14", True),
        ("14", "14", True),
        ("140", "14", False),
        ("Mondays", "Monday", True),
        ("", "14", False),
    ],
)
def test_an_answer_names_its_target(answer: str, target: str, is_right: bool) -> None:
    assert finds_answer(answer, sample(target=target)).value == float(is_right)
    assert mentions(answer, target) == is_right


TEXTS = st.text(max_size=200) | st.text(alphabet="Aa1 .,:'\"«»\n#*-@/ß\u2019\u0130İ", max_size=60)


@given(TEXTS, TEXTS, st.sampled_from(LANGUAGES))
@settings(deadline=None, max_examples=100)
def test_no_text_raises(answer: str, context: str, language: str) -> None:
    asked = sample(context=context, target="14", language=language, facts=["14"])
    for name in ("grounded", "abstains", "finds_answer"):
        found = SCORERS[name](answer, asked)
        assert found.value is None or 0 <= found.value <= 1
        assert found.answer == answer


@given(TEXTS, st.sampled_from(LANGUAGES))
@settings(deadline=None, max_examples=100)
def test_a_text_bears_itself_out(text: str, language: str) -> None:
    made_up, num_claims = unsupported(text, Source(text, language))
    assert made_up == []
    assert num_claims == len(find_claims(text, language))
