"""Does an answer say that it does not know, or that the text does not tell? Phrases in English, German, French, Spanish and Italian.

Other than a refusal (the asker may not have the answer), an abstention is about what is known. Phrases are searched in all five languages
at once, since an adapter may answer in another than it was asked in.
"""

import re

# "the price does not include breakfast" is an answer: such verbs count only where a text is their subject or place
_TEXT = r"(?:text|passage|context|document|notice|article|information|source)"
ENGLISH = rf"""
    \b(?:do|does|did)(?:\ not|n't)\ (?:\w+\ )?(?:say|state|mention|specify|tell|indicate|reveal|disclose)\b
  | \b{_TEXT}\ (?:does|did)(?:\ not|n't)\ (?:\w+\ )?(?:give|provide|contain|include|list|describe|answer|explain|cover|address)\b
  | \bnot\ (?:\w+\ )?(?:mentioned|stated|specified|known|said|indicated|disclosed|answered)\b
  | n't\ (?:\w+\ )?(?:mentioned|stated|specified|known|said|indicated|disclosed|answered)\b
  | (?:\bnot|n't)\ (?:\w+\ )?(?:(?:given|provided|included|available|found|listed|clear|described)\ )?
    (?:in|from|by)\ the\ (?:\w+\ )?{_TEXT}\b
  | \b(?:cannot|can\ not|can't|could\ not|couldn't)\ (?:\w+\ )?
    (?:answer|say|tell|know|determine|be\ (?:answered|determined|known|found\ in))\b
  | \bunable\ to\ (?:answer|say|tell|determine)\b
  | \b(?:do|does|did)(?:\ not|n't)\ know\b | \bnobody\ knows\b | \bno\ idea\b | \bnot\ sure\b
  | \b(?:no|not\ enough|insufficient|lacks?)\ (?:\w+\ )?(?:information|mention|indication|answer)\b
  | \b(?:unknown|unanswerable|unspecified|unstated)\b
"""
GERMAN = r"""
    \bnicht\ (?:\w+\ )?(?:angegeben|erwähnt|bekannt|genannt|ersichtlich|gesagt|beantworte\w*|hervor|sagen)\b
  | \b(?:steht|enthalten)\ (?:im\ \w+\ )nicht\b | \bnicht\ im\ text\b
  | \btext\ (?:nennt|erwähnt|sagt|enthält|gibt|verrät)\ (?:\w+\ ){0,4}(?:nicht|nichts|kein\w*)\b
  | \bkeine?\ (?:\w+\ )?(?:angaben?|information\w*|auskunft|antwort|hinweise?)\b
  | \bweiß\ (?:ich\ |es\ |das\ )*nicht\b | \bunbekannt\b
"""
FRENCH = r"""
    \b(?:ne\ |n')(?:\w+\ ){0,2}(?:dit|mentionne|précise|indique|sait|sais|figure)\ (?:\w+\ )?(?:pas|rien|aucune?)\b
  | \bne\ (?:peux|peut|permet)\ pas\ (?:de\ |d'y\ |y\ )?(?:répondre|dire|savoir)\b | \btexte\ ne\ (?:contient|donne)\ (?:pas|aucune?)\b
  | \b(?:non|pas)\ (?:\w+\ )?(?:mentionn|indiqu|précis)ée?s?\b | \bpas\ (?:dite?|connue?|d'information)s?\b
  | \b(?:aucune|pas\ de)\ (?:information|indication|mention|réponse|précision)\b
  | \binconnue?s?\b | \bimpossible\ de\ (?:répondre|savoir|dire)\b
"""
SPANISH = r"""
    \bno\ (?:se\ |lo\ |la\ |me\ )*(?:menciona|dice|indica|especifica|sabe|sé|aparece|consta|figura|informa|precisa)\b
  | \bno\ (?:se\ )?(?:puedo|puede)\ (?:responder|decir|saber|determinar)\w*
  | \bno\ (?:(?:está|es|viene)\ )?(?:\w+\ )?(?:mencionad|indicad|especificad|conocid|precisad)\w+
  | \b(?:no\ hay|sin|ninguna)\ (?:\w+\ )?(?:información|mención|datos|respuesta)\b | \btexto\ no\ (?:contiene|da|ofrece)\b | \bdesconocid\w+
"""
ITALIAN = r"""
    \bnon\ (?:si\ |lo\ |la\ |ne\ )*(?:so|sa|dice|menziona|indica|specifica|riporta|precisa|risulta)\b
  | \bnon\ (?:si\ )?(?:posso|può|possibile)\ (?:rispondere|dire|sapere|determinare)\w*
  | \bnon\ (?:(?:è|viene|sono)\ )?(?:\w+\ )?(?:menzionat|indicat|specificat|precisat|riportat|not)[oaie]\b
  | \bnessun(?:a\ |')(?:informazione|menzione|indicazione|risposta)\b | \btesto\ non\ (?:contiene|fornisce)\b
  | \bsconosciut[oaie]\b | \bimpossibile\ (?:dire|sapere|rispondere)\b
"""
ABSTENTION = re.compile("|".join((ENGLISH, GERMAN, FRENCH, SPANISH, ITALIAN)), re.VERBOSE)


def find_abstention(answer: str) -> str | None:
    """The first phrase of an answer that says that something is not known or not told; None if there is none."""
    text = " ".join(answer.lower().replace("\u2019", "'").split())
    match = ABSTENTION.search(text)
    return match[0] if match else None
