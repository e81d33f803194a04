"""Subject, session and sequence from the names of folders and files, as "Patient_003/2019-03-03/T1 MPRAGE sag.nii.gz"."""

from __future__ import annotations

import re

SUBJECT = re.compile(
    r"(?:patient|pat|pt|subject|subj|sub|participant|proband|case|volunteer|id|p|s)[ _-]?[A-Za-z]{0,4}\d+[A-Za-z]?",
    re.IGNORECASE,
)
DATE = r"(?:19|20)\d{2}[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])"
OCCASION = r"ses|session|visit|timepoint|time|tp|scan|study|baseline|follow[ _-]?up|month|year|day|week|pre[ _-]?op|post[ _-]?op"
SESSION = re.compile(rf"(?:{DATE}(?:[ _T-].*)?|(?:{OCCASION})[ _-]?\d*)", re.IGNORECASE)
# Words that name a sequence, the most telling first, and what it is called here.
SEQUENCES = (
    (r"t1[ _-]?w?[ _-]?(?:ce|gd|km|c|post|contrast)", "T1wCE"),
    (r"(?:t2[ _-]?)?flair", "FLAIR"),
    (r"t2[ _-]?star|t2\*|gre|swi|swan", "SWI"),
    (r"t1w?|mp2?rage|bravo|spgr|vibe|tfl3d|fspgr", "T1w"),
    (r"t2w?|space|cube|haste|ciss|fiesta", "T2w"),
    (r"pdw?", "PDw"),
    (r"dwi|dti|diff(?:usion)?|ep2d[ _-]?diff|trace[wm]?", "DWI"),
    (r"adc", "ADC"),
    (r"tof|mra|angio", "MRA"),
    (r"bold|fmri|rest(?:ing)?", "bold"),
    (r"cbct", "CBCT"),
    (r"ct|cta|ncct|cect", "CT"),
    (r"pet|fdg|suv", "PET"),
)
_SEQUENCES = tuple(
    (re.compile(rf"(?:^|[^a-z0-9])(?:{words})(?:$|[^a-z0-9])", re.IGNORECASE), name) for words, name in SEQUENCES
)


def from_folders(stem: str) -> dict[str, str]:
    """What the path of an image (below the folder that was named, with /, without ending) says: subject, session, modality."""
    *folders, name = stem.split("/")
    found: dict[str, str] = {}
    for folder in folders:
        if "subject" not in found and SUBJECT.fullmatch(folder):
            found["subject"] = folder
        elif "session" not in found and "subject" in found and SESSION.fullmatch(folder):
            found["session"] = folder
    if "subject" in found:
        sequence = sequence_in(name) or next((s for f in reversed(folders) if (s := sequence_in(f))), None)
        found |= {"modality": sequence} if sequence else {}
    return found


def sequence_in(text: str) -> str | None:
    """The sequence that a name tells of, None where it tells of none."""
    words = text.replace("_", " ")
    return next((name for pattern, name in _SEQUENCES if pattern.search(words)), None)
