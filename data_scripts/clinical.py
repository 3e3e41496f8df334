"""How the notes and codes of MIMIC become text and labels: ICD dots, leading zeros, cleaning.

Each function says where its rule comes from. There are two rules for ICD-9 procedures: with
`zeros=True` a code stays as the hospital wrote it; with `zeros=False` it loses its leading zeros,
as in the published label space of MIMIC-III (CAML read the column as numbers, so 00.44 and 04.4
became one label). Not here: reading the tables (mimic_tables.py) and choosing documents
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
    """An ICD-9-CM code with its dot after 2 (procedure), 3 (diagnosis) or 4 (E code) characters.

    The tables hold codes without dots. The rule is CAML's `reformat` (Mullenbach et al., NAACL
    2018) and that of Edin et al. (SIGIR 2023), except that no dot is left at the end.

    Args:
        code: from the table; '' stays ''.
        procedure: the code is one of a procedure.
        zeros: keep the leading zeros of a procedure.
    """
    code = code.replace(".", "").strip().upper()
    if procedure and not zeros:
        code = code.lstrip("0")
    if procedure:
        at = 2
    else:
        at = 4 if code.startswith("E") else 3
    return f"{code[:at]}.{code[at:]}" if len(code) > at else code


def icd10(code: str, procedure: bool) -> str:
    """An ICD-10 code: a dot after 3 characters of a diagnosis (CM), none in a procedure (PCS).

    The rule is that of Edin et al. (2023), except that their files end a three-character diagnosis
    with a dot ('I10.'); here it is I10.
    """
    code = code.replace(".", "").strip().upper()
    return code if procedure or len(code) <= 3 else f"{code[:3]}.{code[3:]}"


def plain(text: str) -> str:
    """Text for word pieces: spaces are collapsed, de-identification marks become ___.

    MIMIC-IV writes the marks so. A mark such as [**2151-7-16**] costs a dozen word pieces and says
    nothing. Case, numbers and punctuation are kept, since encoders were pretrained on them. Each
    paragraph becomes one line.
    """
    paragraphs = re.split(r"\n\s*\n", MARK.sub("___", text).replace("\r", ""))
    return "\n".join(filter(None, (" ".join(p.split()) for p in paragraphs)))


def caml(text: str) -> str:
    """CAML's cleaning (get_discharge_summaries.py): words in lower case, without numbers."""
    return " ".join(word.lower() for word in WORD.findall(text) if not word.isnumeric())


def edin(text: str) -> str:
    """Edin et al.'s cleaning: letters and digits in lower case, without numbers between spaces."""
    return " ".join(NUMBERS.sub(" ", OTHER.sub(" ", text.lower())).split())


def cleaned(text: str, form: str) -> str:
    """`text` in one of TEXTS: plain (default of the scripts), raw, caml or edin."""
    return text if form == "raw" else {"plain": plain, "caml": caml, "edin": edin}[form](text)


def described(pairs: list[tuple[str, str]]) -> dict[str, str]:
    """{code: description}; a code with several descriptions gets them all, joined by ' / '.

    This happens where codes lost their leading zeros.
    """
    descriptions: dict[str, list[str]] = {}
    for code, text in pairs:
        if code and text:
            texts = descriptions.setdefault(code, [])
            if text not in texts:
                texts.append(text)
    return {code: " / ".join(texts) for code, texts in descriptions.items()}


def with_inclusion_terms(texts: dict[str, str]) -> dict[str, str]:
    """ICD-10 descriptions followed by ICD-10-CM's inclusion terms.

    Codes that the package simple-icd-10-cm does not know keep their description; so do all codes
    where it is not installed.
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
