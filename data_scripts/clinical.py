"""What MIMIC's notes and codes look like once they are text and labels: ICD dots, leading zeros,
marks, published cleaning.

Each function states where its rule comes from. Two rules for ICD-9 procedures live side by side:
`zeros=True` is the code as the hospital wrote it; `zeros=False` is the code that went through an
integer, as in the published label space of MIMIC-III (CAML read the column as numbers, so 00.44 and
04.4 fell into one label). Not here: reading the tables (mimic_tables.py) and choosing documents
(get_mimic3.py, get_mimic4.py).
"""

from __future__ import annotations

import re

MARK = re.compile(r"\[\*\*.*?\*\*\]", re.DOTALL)
WORD = re.compile(r"\w+")
OTHER = re.compile(r"[^A-Za-z0-9]+")
NUMBERS = re.compile(r"(?:\s\d+)+\s")
TEXTS = ("plain", "raw", "caml", "edin")


def icd9(code: str, procedure: bool, zeros: bool = True) -> str:
    """An ICD-9-CM code with its dot: after 2 digits of a procedure, 3 of a diagnosis, 4 of an E
    code ('' stays '').

    The tables hold codes without dots; the rule is CAML's `reformat` (Mullenbach et al., NAACL
    2018) and Edin et al.'s (SIGIR 2023), except that no dot is left at the end. zeros=False drops a
    procedure's leading zeros, see above.
    """
    code = code.replace(".", "").strip().upper()
    if procedure and not zeros:
        code = code.lstrip("0")
    at = 2 if procedure else 4 if code.startswith("E") else 3
    return f"{code[:at]}.{code[at:]}" if len(code) > at else code


def icd10(code: str, procedure: bool) -> str:
    """An ICD-10 code with its dot: after 3 characters of a diagnosis (CM), none in a procedure
    (PCS). Edin et al., 2023.

    Their files write a three-character diagnosis with a dot at its end ('I10.'); here it is I10.
    """
    code = code.replace(".", "").strip().upper()
    return code if procedure or len(code) <= 3 else f"{code[:3]}.{code[3:]}"


def plain(text: str) -> str:
    """Text for word pieces: de-identification marks become MIMIC-IV's ___, line ends and white
    space are collapsed.

    A mark such as [**2151-7-16**] says nothing but costs a dozen word pieces; case, numbers and
    punctuation are kept, since encoders were pretrained on them. Lines that are empty part
    paragraphs, so these stay on lines of their own.
    """
    paragraphs = re.split(r"\n\s*\n", MARK.sub("___", text).replace("\r", ""))
    return "\n".join(filter(None, (" ".join(p.split()) for p in paragraphs)))


def caml(text: str) -> str:
    """CAML's cleaning: runs of word characters, lower case, those that are numbers dropped
    (get_discharge_summaries.py).
    """
    return " ".join(word.lower() for word in WORD.findall(text) if not word.isnumeric())


def edin(text: str) -> str:
    """Edin et al.'s cleaning: lower case, all but letters and digits is space, numbers between
    spaces dropped.
    """
    return " ".join(NUMBERS.sub(" ", OTHER.sub(" ", text.lower())).split())


def cleaned(text: str, form: str) -> str:
    """`text` in one of TEXTS: plain (default of the scripts), raw, caml or edin."""
    return text if form == "raw" else {"plain": plain, "caml": caml, "edin": edin}[form](text)


def described(pairs: list[tuple[str, str]]) -> dict[str, str]:
    """{code: description}; a code that stands for several (leading zeros lost) gets them all,
    parted by ' / '.
    """
    found: dict[str, list[str]] = {}
    for code, text in pairs:
        if code and text and text not in (own := found.setdefault(code, [])):
            own.append(text)
    return {code: " / ".join(texts) for code, texts in found.items()}


def with_inclusion_terms(texts: dict[str, str]) -> dict[str, str]:
    """ICD-10 descriptions with ICD-10-CM's inclusion terms behind them, where simple-icd-10-cm is
    there and knows the code.
    """
    try:
        import simple_icd_10_cm as terminology
    except ImportError:
        return texts
    terms = {
        c: terminology.get_inclusion_term(c.upper())
        for c in texts
        if terminology.is_valid_item(c.upper())
    }
    return {code: ". ".join([text, *terms.get(code, ())]) for code, text in texts.items()}
