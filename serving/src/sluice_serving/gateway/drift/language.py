"""Which language a text is in, cheaply and without a model: by its script, and by the commonest words of a language.

Some scripts belong to one language alone. In the others, the words are counted that a language cannot do without
(articles, pronouns, prepositions, common verbs) and that few of the others have; a text of three words or more where
one language has the most of them is that language's. Everything else is `und`, BCP 47's word for undetermined, with
the script where there is one (`und-Latn`): a product name, a number or a line of code is in no language."""

import re
from collections import Counter

MAX_CHARACTERS = 500
"""Of a text are looked at."""
UNDETERMINED = "und"
_WORD = re.compile(r"[^\W\d_]+")
_SCRIPTS = (
    ("Kana", "ja", re.compile(r"[\u3040-\u30ff]")),
    ("Hang", "ko", re.compile(r"[\u1100-\u11ff\uac00-\ud7af]")),
    ("Hani", "zh", re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")),
    ("Thai", "th", re.compile(r"[\u0e00-\u0e7f]")),
    ("Hebr", "he", re.compile(r"[\u0590-\u05ff]")),
    ("Grek", "el", re.compile(r"[\u0370-\u03ff\u1f00-\u1fff]")),
    ("Arab", None, re.compile(r"[\u0600-\u06ff\u0750-\u077f]")),
    ("Deva", None, re.compile(r"[\u0900-\u097f]")),
    ("Cyrl", None, re.compile(r"[\u0400-\u052f]")),
    ("Latn", None, re.compile(r"[A-Za-z\u00c0-\u024f\u1e00-\u1eff]")),
)
"""ISO 15924's name, the language where there is (nearly) one, and the letters."""
_WORDS = {
    "Latn": {
        "en": "the and is are was of to in that it you for with this my your what how can do not i we have please "
        "would from be where when why will need want a an me on with about",
        "de": "der die das und ist sind nicht ich du sie wir ein eine einen mit auf für von zu den dem wie was kann "
        "mein meine bitte möchte auch habe wo wann warum",
        "fr": "le la les des et est une un je vous nous pas pour dans que qui sur mon ma avec ce cette comment bonjour "
        "puis peux voudrais où quand suis du",
        "es": "el la los las y es una un que de en por para con no mi su cómo qué puedo quiero está yo usted se hola "
        "dónde cuándo del",
        "it": "il lo la gli le e è una un che di per con non mio mia come cosa posso vorrei sono questo questa dove "
        "quando della ciao",
        "pt": "o a os as e é uma um que de em por para com não meu minha como posso quero está você eu do da olá onde "
        "quando isso",
        "nl": "de het een en is van ik je niet met voor op dat dit mijn hoe wat kan kunt wil graag waar wanneer aan "
        "zijn heb naar",
        "pl": "i w na z nie się jest to że jak czy mój moje moja proszę chcę mogę co dla do gdzie kiedy mam od",
        "sv": "och att det är jag en ett inte på för med som min mitt hur vad kan vill du var när har till av",
        "tr": "ve bir bu için ile ne nasıl ben benim mi değil var istiyorum lütfen çok da nerede zaman olarak",
    },
    "Cyrl": {
        "ru": "и в не на что как это мне мой моя я вы с по для где когда можно хочу пожалуйста у ли есть",
        "uk": "і в не на що як це мені мій моя я ви з та для де коли можна хочу будь ласка є чи",
    },
}
_LANGUAGES_OF = {
    script: {
        word: frozenset(n for n, w in of.items() if word in w.split())
        for words in of.values()
        for word in words.split()
    }
    for script, of in _WORDS.items()
}
_LEAST_WORDS = 3
_LEAST_KNOWN = 2


def language(text: str) -> str:
    """A BCP 47 tag: `en`, `und-Latn`, `und`."""
    text = text[:MAX_CHARACTERS]
    scripts = _SCRIPTS[-1:] if text.isascii() else _SCRIPTS
    letters = Counter({name: len(pattern.findall(text)) for name, _, pattern in scripts})
    if not letters.total():
        return UNDETERMINED
    if letters["Kana"]:  # Japanese mixes its own letters with Chinese ones, Chinese never does
        letters["Kana"] += letters.pop("Hani")
    script, _ = letters.most_common(1)[0]
    known = next(language for name, language, _ in _SCRIPTS if name == script)
    return known or _by_words(text, script) or f"{UNDETERMINED}-{script}"


def _by_words(text: str, script: str) -> str | None:
    """The language that has most of the words; a word that several have counts as much less for each of them."""
    languages = _LANGUAGES_OF.get(script, {})
    words = _WORD.findall(text.lower())
    scores: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    for word in words:
        for one in languages.get(word, ()):
            scores[one] += 60 // len(languages[word])  # whole numbers: sums that are equal are known to be
            hits[one] += 1
    best = scores.most_common(2)
    if len(words) < _LEAST_WORDS or not best or hits[best[0][0]] < _LEAST_KNOWN:
        return None
    return None if len(best) > 1 and best[0][1] == best[1][1] else best[0][0]
