"""The spellings by which other projects' data says "here is the music" in a question.

One rule for all: the music stands where the template has it, before the question, and a placeholder is taken out
wherever it stands, as LLaVA moves its own to the front.
"""

import re

_PLACEHOLDER = re.compile(
    r"""(\s*)(?:
      <(audio|speech|music|sound)>(?:[^<>\n]|<\2here>)*</\2>  # <Audio><AudioHere></Audio>: MusiLingo, SALMONN
    | <\|(?:audio_bos|audio_start)\|>\s*<\|audio\|>\s*<\|(?:audio_eos|audio_end)\|>  # Qwen2-Audio, with its ends
    | <(?:audio|speech|music|sound)(?:here)?>  # LLaVA's form: MusicQA; VILA and Audio Flamingo
    | <\|(?:audio|speech|music|sound)(?:_\d+)?\|>  # <|AUDIO|>, <|audio_1|>: Qwen2-Audio, Phi-4
    | <audio_(?:placeholder|soft_token)>  # Gemma 3n
    )(\s*)(?=(\S?))""",
    re.IGNORECASE | re.VERBOSE,
)


def without_placeholders(question: str) -> str:
    """A question without placeholders and without white space around them; one that has none is left as it is."""
    plain, found = _PLACEHOLDER.subn(_gap, question)
    return plain.strip() if found else question


def _gap(match: re.Match[str]) -> str:
    """What stays between the words on both sides: a line break, a space, or nothing before punctuation."""
    before, after, follows = match[1], match[3], match[4]
    if "\n" in before + after:
        return "\n"
    return "" if follows in set(".,;:!?)") else " "
