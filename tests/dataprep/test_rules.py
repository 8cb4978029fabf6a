"""Cleaning rules for single rows: what they catch, and what they must leave alone."""

import re
import tempfile
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_core.config import CleaningConfig
from rlhf_core.dataprep.cleaning import language, word_hashes
from rlhf_core.dataprep.cleaning.contamination import read_benchmark
from rlhf_core.dataprep.cleaning.language import known_languages, other_language, surely_allowed
from rlhf_core.dataprep.cleaning.personal import find_personal_data
from rlhf_core.dataprep.cleaning.rules import make_rules
from rlhf_core.errors import ConfigError, DataError, StorageError
from rlhf_core.schema import Message
from tests.disks import no_larger_files

KINDS = ("email", "phone", "secret")
QUESTION = "How many sides does a regular polygon with an interior angle of 120 degrees have?"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to jane.doe+x@mail.example.org today", "email"),
        ("call +49 30 901820 or come by", "phone"),
        ("call (030) 901820", "phone"),
        ("it is 415-555-0132-99", "phone"),
        ("text me at 4155550132 now", "phone"),
        ("on 07911123456", "phone"),
        ("01 23 45 67 89, please", "phone"),
        ("0044 20 7946 0958", "phone"),
        ("1-415-555-0132", "phone"),
        ("Call 34 612 345 678 now", "phone"),
        ("ring 61 412 345 678, yes", "phone"),
        ("my number is 501 000 567", "phone"),
        ("ring 48-501-234-567", "phone"),
        ("key AKIAIOSFODNN7EXAMPLE", "secret"),
        ("token ghp_abcdefghijklmnopqrstuvwxyz0123456789", "secret"),
        *((f"token gh{of}_{'abcdefghij' * 3}", "secret") for of in "pousr"),
        ("token hf_abcdefghijklmnopqrstuvwxyzABCDEFGH", "secret"),
        ("-----BEGIN RSA PRIVATE KEY-----", "secret"),
        ("set it to 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b", "secret"),
        ("-----BEGIN PGP PRIVATE KEY BLOCK-----", "secret"),
        ("key ASIAIOSFODNN7EXAMPLE", "secret"),
        ("token glpat-abcdefghij1234567890", "secret"),
        ("token ya29.a0AfH6SMBx-1234567890abcdefghij", "secret"),
        ("clone https://ann:hunter2@example/x", "secret"),
        ("use postgres://ann:s3cret@db/main", "secret"),
        ("use redis://:s3cret@cache:6379", "secret"),
        ("key sk-proj-abcdefghijklmnop1234", "secret"),
        ("key sk-ant-api03-abcdefghijk", "secret"),
        ("password=Zk3vQ9xT7mLp2RwY8sNc4BfH6jDa1GeU", "secret"),
    ],
)
def test_personal_data_is_found_by_kind(text, kind):
    assert find_personal_data(text, KINDS) == kind
    assert find_personal_data(text, [other for other in KINDS if other != kind]) is None


@pytest.mark.parametrize(
    "text",
    [
        "The library opens at 9:30 and closes at 18:00, 2024-05-17.",
        "It costs 1234567 dollars, or 1,234,567.89 with tax.",
        "the 1990-2000 and 2001-2010 decades, ISBN 978",
        "see https://example.org/watch?v=dQw4w9WgXcQabcdefghijklmnop0123456789",
        "a@b, user@localhost and @someone",
        "ISBN 978-3-16-148410-0 or 978 3 16 148410 0",
        "ISBN 0-306-40615-2 is a book",
        "the printer is 192.168.100.200 here",
        "in 1939 - 1945 1950 and 1914 1918 1939",
        "on 2024-05-17 1200 people, on 12.05.2024 18 30 and 3/4/2024 450000",
        "count 1 2 3 4 5 6 7 8 9 10 11 12 13",
        "10 20 30 40 50 60",
        "at 1700000000 it was, of 31415926535",
        "it lies at 37.3362725, -12.8819212, and pi is 3.14159265",
        "supercalifragilisticexpialidociousandmore",
        "-" * 80,
        "commit 4b825dc642cb6eb9a060e54bf8d69288fbee4904 broke it",
        f"image@sha256:{'e3b0c44298fc1c14' * 4}",
        f"{'9f86d081884c7d65' * 4}  archive.tar.gz",
        "sk-learn-is-a-great-library-for-ml",
        "http://localhost:8080/ann@example, or https://a.b/c:d@e",
        "it is 100 000 000 km and 150.000.000 Euro and 12.345.678.901",
        "it is 149 597 871 km and 12 345 678 901,50 EUR, or $ 331 449 281 for 331 449 281 people",
        "Windows 10.0.19041.1",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa1",
    ],
)
def test_ordinary_text_has_no_personal_data(text):
    assert find_personal_data(text, KINDS) is None


TEXTS = {
    "en": "The library is on the corner of the square, and it opens at nine in the morning "
    "for you.",
    "de": "Die Bibliothek ist an der Ecke des Platzes und sie öffnet um neun Uhr, aber "
    "nicht am Sonntag.",
    "fr": "La bibliothèque est au coin de la place et elle ouvre à neuf heures, mais pas le"
    " dimanche pour vous.",
    "es": "La biblioteca está en la esquina de la plaza y abre a las nueve, pero no los "
    "domingos para el público.",
    "it": "La biblioteca è all'angolo della piazza e apre alle nove, ma non di domenica per"
    " il pubblico che è in città.",
    "pt": "A biblioteca fica na esquina da praça e não abre aos domingos, mas é aberta para"
    " você de manhã com os seus.",
    "nl": "De bibliotheek is op de hoek van het plein en het is niet open op zondag, maar "
    "er zijn ook andere dagen.",
    "ru": "Библиотека находится на углу площади и открывается в девять часов.",
    "zh": "图书馆在广场的拐角处,早上九点开门,星期天不开门。",
    "ja": "としょかんはひろばのかどにあります。あさくじにあきます。",
    "el": "Αυτή η βιβλιοθήκη είναι στη γωνία της πλατείας και ανοίγει στις εννέα.",
}


@pytest.mark.parametrize("language", TEXTS)
def test_running_text_is_told_by_its_language(language):
    assert other_language(TEXTS[language], frozenset({language})) is None
    others = frozenset(TEXTS) - {language}
    if language not in ("zh", "ja"):
        assert other_language(TEXTS[language], others) == language
    assert other_language(TEXTS[language], frozenset({"en"})) in (language, None)
    assert language == "en" or other_language(TEXTS[language], frozenset({"en"})) == language


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Biblioteket öppnar klockan nio på morgonen och stänger klockan sex på kvällen.", "sv"),
        ("Biblioteka jest otwarta od godziny dziewiątej rano do osiemnastej wieczorem.", "pl"),
        ("Knihovna je otevřena od devíti hodin ráno do šesti hodin večer každý den.", "cs"),
        ("Thư viện mở cửa lúc chín giờ sáng và đóng cửa lúc sáu giờ chiều.", "vi"),
        ("Perpustakaan buka pada pukul sembilan pagi dan tutup pada pukul enam sore.", "id"),
    ],
)
@pytest.mark.parametrize("allowed", [{"en"}, {"en", "de", "fr", "es", "it", "pt", "nl"}])
def test_languages_are_told_whatever_their_letters(text, language, allowed):
    assert other_language(text, frozenset(allowed)) == language
    assert other_language(" ".join(text.split()[:8]), frozenset(allowed)) is None


def test_near_relatives_of_a_language_to_keep_stay_where_they_may_be_it():
    text = "Perpustakaan buka pada pukul sembilan pagi dan tutup pada pukul enam sore."
    assert other_language(text, frozenset({"ms"})) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No.",
        "Ja, gern!",
        "Düsseldorf, Łódź, São Paulo, " * 8,
        "The café's crème brûlée and the entrée were as good as the façade, and the naïve maître "
        "d' of the place was an émigré.",
        "def f(x): return x + 1",
        "https://example.org/der/die/das/und/ist",
        "Tacos de pescado, enchiladas de pollo, arroz con leche",
        "Αντίο!",
        "12 34 56",
    ],
)
def test_short_text_names_and_code_stay(text):
    assert other_language(text, frozenset({"en"})) is None


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=300))
def test_no_text_can_crash_a_rule(text):
    find_personal_data(text, KINDS)
    assert other_language(text, frozenset({"en"})) in known_languages() | {None}


def rules_for(tmp_path, **cleaning):
    return make_rules(CleaningConfig(**cleaning), token_check=None)


def prompt(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def test_rows_that_quote_a_benchmark_are_caught_in_prompt_and_response(tmp_path, write_jsonl):
    lines = tmp_path / "bench.txt"
    lines.write_text(f"{QUESTION}\n\nName the capital.\n")
    rows = write_jsonl(
        "bench.jsonl",
        [{"question": "An odd one, that nobody else would ever think of asking here?", "n": 3}],
    )
    rules = rules_for(tmp_path, contamination=(lines, rows))
    changed = QUESTION.upper().replace(" ", "  ") + " Think first."
    assert rules.problem(prompt(changed), ["Six."])[0] == "benchmark_contamination"
    assert rules.problem(prompt("Hi"), [f"He asked: {QUESTION}"])[0] == "benchmark_contamination"
    assert rules.problem(prompt("name the  capital."), ["x"])[0] == "benchmark_contamination"
    assert rules.problem(prompt("Name the capital. Then the river."), ["x"]) is None
    assert rules.problem(prompt("that nobody else would ever think of asking"), ["x"])
    assert rules.problem(prompt("How many sides does a square have?"), ["Four."]) is None


def test_answers_of_a_benchmark_condemn_no_row_unless_their_column_is_named(tmp_path, write_jsonl):
    rows = write_jsonl("bench.jsonl", [{"question": QUESTION, "answer": "yes", "key": "A"}])
    rules = rules_for(tmp_path, contamination=(rows,))
    assert rules.problem(prompt("Is it so?"), ["Yes", "A"]) is None
    assert rules.problem(prompt(QUESTION), ["x"])[0] == "benchmark_contamination"
    named = rules_for(tmp_path, contamination=(rows,), contamination_columns=("answer",))
    assert named.problem(prompt("Is it so?"), ["Yes"])[0] == "benchmark_contamination"
    assert named.problem(prompt(QUESTION), ["x"]) is None
    with pytest.raises(DataError, match="no text to look for"):
        rules_for(tmp_path, contamination=(rows,), contamination_columns=("nothing",))


def test_a_quotation_is_found_between_marks_and_without_spaces(write_jsonl):
    english = "What is the capital city of France today, my friend?"
    chinese = "日本的首都在哪里、那里一共住着多少人。"
    path = write_jsonl("bench.jsonl", [{"question": english}, {"question": chinese}])
    benchmark = read_benchmark([path])
    assert benchmark.quoted_by(f'He asked "{english}" twice')
    assert benchmark.quoted_by("请回答。日本的首都在哪里?那里一共住着多少人")
    assert benchmark.quoted_by("请问日本的首都在哪里") is None
    assert benchmark.quoted_by("the capital city of France is large today, my dear") is None


def test_a_benchmark_without_text_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match=r"empty\.txt: no text"):
        rules_for(tmp_path, contamination=(tmp_path / "empty.txt",))


def test_an_unknown_language_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="xx cannot be detected; known: "):
        rules_for(tmp_path, languages=("en", "xx"))


def test_each_rule_gives_its_reason_and_nothing_is_on_by_default(tmp_path):
    text = f"{TEXTS['de']} jane@example.org"
    assert rules_for(tmp_path).problem(prompt(text), [text]) is None
    found = rules_for(tmp_path, languages=("en",)).problem(prompt("Hi"), [text])
    assert found == ("wrong_language", f"reads like de: {text[:57]}...")
    found = rules_for(tmp_path, personal_data=("email",)).problem(prompt(text), [])
    assert found == ("personal_data", "email")


def test_texts_asked_together_are_cleared_only_where_each_alone_would_be():
    texts = [*TEXTS.values(), QUESTION, "", "a", "123 456", "half \ud800 of it", QUESTION.upper()]
    texts += [f"{text} {QUESTION}" for text in TEXTS.values()]
    texts += [f"{number} {text}" for number in range(4) for text in texts]
    for allowed in (frozenset({"en"}), frozenset({"de", "ja"})):
        cleared = surely_allowed(texts, allowed)
        alone = [other_language(text, allowed) for text in texts]
        assert not [text for text, yes, no in zip(texts, cleared, alone, strict=True) if yes and no]
        assert any(cleared)
    # Few texts are cheaper asked one by one.
    assert surely_allowed([], frozenset({"en"})) == []
    assert surely_allowed([QUESTION], frozenset({"en"})) == [False]


def test_shares_of_texts_asked_together_are_those_that_the_library_gives_each():
    texts = [*TEXTS.values(), QUESTION, QUESTION * 30, "", "123 456"]
    model = language._identifier()
    ours = np.array([name in ("en", "de") for name in model.nb_classes])
    found = language._shares_at_once([language._bytes_of(text) for text in texts], ours)
    expected = [
        sum(share for name, share in model.rank(text) if name in ("en", "de")) for text in texts
    ]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_first_of_several_quotations_is_named(write_jsonl):
    lines = [" ".join(f"w{n}" for n in range(start, start + 10)) for start in (0, 100)]
    benchmark = read_benchmark([write_jsonl("bench.jsonl", [{"q": line} for line in lines])])
    text = f"so {lines[1]} and {lines[0]}"
    assert benchmark.quoted_by(text) == " ".join(lines[1].split()[:8])
    mixed = " ".join(reversed(lines[0].split()))
    assert benchmark.quoted_by(mixed) is None


def test_runs_of_one_hash_are_told_apart_by_their_words(write_jsonl, monkeypatch):
    monkeypatch.setattr(word_hashes, "_TEXTS", word_hashes._RecentTexts())
    monkeypatch.setattr(word_hashes, "_PARTS", word_hashes._PartHashes())
    monkeypatch.setattr(word_hashes, "_HASHES", defaultdict(int))
    benchmark = read_benchmark([write_jsonl("bench.jsonl", [{"q": QUESTION}])])
    others = " ".join(f"w{n}" for n in range(30))
    assert benchmark.quoted_by(others) is None
    assert benchmark.quoted_by(f"{others} {QUESTION}") is not None


def test_many_texts_asked_together_are_told_from_those_that_may_quote(write_jsonl):
    lines = [" ".join(f"w{n}" for n in range(start, start + 10)) for start in (0, 100)]
    path = write_jsonl("bench.jsonl", [{"q": line} for line in [*lines, "yes it is"]])
    benchmark = read_benchmark([path], ["q"])
    others = [" ".join(f"x{n}" for n in range(start, start + 40)) for start in range(200)]
    quoting = [f"so {lines[1]}", lines[0], "Yes, it is!"]
    texts = [*others[:50], *quoting, *others[50:], lines[0][:15], lines[0][15:], ""]
    asked = benchmark.may_be_quoted_by(texts)
    found = [benchmark.quoted_by(text) for text in texts]
    assert [text for text, run in zip(texts, found, strict=True) if run] == quoting
    assert all(is_asked for is_asked, run in zip(asked, found, strict=True) if run)
    assert sum(asked[:50] + asked[53:-3]) == 0
    assert benchmark.may_be_quoted_by([]) == []


def test_a_temporary_folder_without_room_is_named():
    named = f"^{re.escape(tempfile.gettempdir())}.* cannot be written"
    with no_larger_files(1_000_000), pytest.raises(StorageError, match=named):
        language._identifier.__wrapped__()
