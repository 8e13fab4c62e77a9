"""Short lists of words in English, German, French, Spanish and Italian: those that carry grammar, numbers, months, greetings."""

from functools import lru_cache

FUNCTION_WORDS_BY_LANGUAGE = {
    "en": """a about after again all also am an and any are as at be because been before being both but by can could did do does doing down
        each either else even every few for from further had has have having he her here hers him his how however i if in into is it its
        just like many may me might more most much must my neither no nor not now of off on once one only or other our ours out over own
        perhaps please quite rather same shall she should since so some still such than that the their theirs them then there therefore
        these they this those though through thus to too under until up upon us very was we well were what when where whether which while
        who whom whose why will with within without would yes yet you your yours""",
    "de": """aber alle als also am an auch auf aus bei bis da dabei damit dann das dass dem den denn der des dessen die dies diese diesem
        diesen dieser dieses doch dort du durch ein eine einem einen einer eines er es etwa euch euer für gegen hat hatte haben hier ich
        ihm ihn ihnen ihr ihre ihrem ihren ihrer im in ist ja jede jeden jeder kann kein keine können man mehr mein meine mit muss nach
        nicht noch nun nur ob oder ohne schon sehr sein seine seinem seinen sich sie sind so sondern um und uns unser unter vom von vor
        war waren was weil wenn wer werden wie wieder wir wird wo wurde würde zu zum zur zwischen über""",
    "fr": """afin ai ainsi alors après au aucun aussi autre aux avant avec avez avoir c'est car ce cela ces cet cette ceux chaque chez
        comme comment d'un d'une dans de depuis des donc dont du elle elles en encore entre est et eux il ils j'ai je jusqu'à l'on la le
        les leur leurs lorsque lui mais me même mes moi mon ne ni nos notre nous on ont ou où par parce pas pendant peut peu plus pour
        pourquoi puis qu'il qu'elle quand que quel quelle qui quoi sa sans se ses si son sont sous sur ta te tes toi ton tous tout toute
        très tu un une vers vos votre vous y à été être""",
    "es": """a al algo alguna algunos antes aquí así aunque cada como con cual cuando cuánto de del desde donde dos durante e el él ella
        ellas ellos en entre era eres es esa ese eso esta está están estas este esto estos fue ha han hasta hay la las le les lo los más
        me mi mientras mis mucho muy nada ni no nos nosotros nuestra nuestro o os otra otro para pero poco por porque pues que qué quien
        se según ser si sí sin sobre son su sus también tan tanto te tiene todo todos tu tus un una unas unos usted y ya yo""",
    "it": """a ad agli ai al alla alle allo anche ancora c'è che chi ci come con cosa così cui da dagli dai dal dalla dalle degli dei del
        della delle dello di dopo dove e è ed era fra gli ha hanno i il in io la le lei li lo loro lui ma me mentre mi mia mio molto ne
        nei nel nella nelle noi non nostra nostro o ogni per perché però più poi prima può qua quale quando quanto quella quelle quello
        questa queste questi questo qui se senza si sono sopra sotto sta su sua sue sui sul sulla suo suoi tra tu tua tuo tutti tutto
        un un' una uno vi voi""",
}
FUNCTION_WORDS = frozenset(word for words in FUNCTION_WORDS_BY_LANGUAGE.values() for word in words.split())

_GREETINGS = """i ok okay dear hello hi regards sincerely best kind yours thanks mr mrs ms dr prof sir madam
    sehr hallo herr frau herrn mit freundlichen liebe lieber
    cher chère bonjour madame monsieur merci cordialement
    estimado estimada hola señor señora gracias saludos
    gentile caro cara signora signor grazie buongiorno ciao"""
GREETINGS = frozenset(_GREETINGS.split())
"""Words that polite letters write with a capital and that name nobody."""

_MONTHS = (
    "january januar janvier enero gennaio jan",
    "february februar février febrero febbraio feb",
    "march märz mars marzo",
    "april avril abril aprile apr",
    "may mai mayo maggio",
    "june juni juin junio giugno jun",
    "july juli juillet julio luglio jul",
    "august août agosto aug",
    "september septembre septiembre settembre sept sep",
    "october oktober octobre octubre ottobre oct okt",
    "november novembre noviembre nov",
    "december dezember décembre diciembre dicembre dec dez",
)
MONTHS = {name: number for number, names in enumerate(_MONTHS, 1) for name in names.split()}

# from two on: "one" and its sisters are articles and pronouns more often than numbers
_NUMBERS = {
    "en": "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty",
    "de": "zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn achtzehn neunzehn"
    " zwanzig",
    "fr": "deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize",
    "es": "dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince",
    "it": "due tre quattro cinque sei sette otto nove dieci undici dodici tredici quattordici quindici",
}
_TENS = {
    "en": "thirty forty fifty sixty seventy eighty ninety",
    "de": "dreißig vierzig fünfzig sechzig siebzig achtzig neunzig",
    "fr": "trente quarante cinquante soixante",
    "es": "treinta cuarenta cincuenta sesenta setenta ochenta noventa",
    "it": "trenta quaranta cinquanta sessanta settanta ottanta novanta",
}


@lru_cache
def number_words(language: str) -> dict[str, str]:
    """The words of a language for two to twenty and for the tens, with their figures; none for a language that is not here."""
    units = {word: str(value) for value, word in enumerate(_NUMBERS.get(language, "").split(), 2)}
    return units | {word: str(10 * value) for value, word in enumerate(_TENS.get(language, "").split(), 3)}
