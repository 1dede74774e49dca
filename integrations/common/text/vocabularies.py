"""The tokens of student and teacher, and whether they are the same."""

from collections.abc import Mapping
from dataclasses import dataclass

from amidmath.integrations.common.errors import InputError

MODES = ("strict", "common", "common_only")

COMMON_ONLY = "common_only"

BOTH_MODES = (
    "--vocab common_only compares the tokens that both have and leaves the others out; --vocab "
    "common compares them, and the others as one"
)

VOCAB_HELP = (
    "strict: student and teacher have logits over the same tokens; common: over the first tokens "
    "that both have, all others being one more token; common_only: the others are left out, and "
    "both distributions are over the common tokens alone."
)

# Tokens that training adds to a tokenizer are few. Byte-level tokenizers of different families
# begin with the same 256 tokens, which makes no common vocabulary.
_SHARED_AT_LEAST = 0.9


@dataclass(frozen=True)
class Vocabularies:
    """The tokens that student and teacher have in common, and those that they have not.

    Args:
        mode: "strict", "common" or "common_only".
        common: how many first tokens are the same.
        student: how many logits the student gives.
        teacher: how many the teacher gives.
        only_student: how many tokens the student's tokenizer has beyond the common ones, or where
            the teacher's has none.
        only_teacher: the same of the teacher's.
    """

    mode: str
    common: int
    student: int
    teacher: int
    only_student: int
    only_teacher: int

    def describe(self) -> str:
        """For people, in one line."""
        if self.student == self.teacher == self.common:
            line = f"{self.common:,} tokens, the same for both"
        else:
            others = "are left out" if self.mode == COMMON_ONLY else "count as one token"
            line = (
                f"{self.common:,} tokens in common, of {self.student:,} of the student's logits "
                f"and {self.teacher:,} of the teacher's; the others {others}"
            )
        if self.only_student or self.only_teacher:
            line += (
                f" ({self.only_student} tokens are the student's only, {self.only_teacher} the "
                "teacher's only)"
            )
        return line


def compare_vocabularies(
    student_tokens: Mapping[str, int],
    teacher_tokens: Mapping[str, int],
    student_logits: int,
    teacher_logits: int,
    vocab: str = "strict",
    *,
    cached: bool = False,
) -> Vocabularies:
    """Find the tokens over which two models' distributions can be compared.

    A token that a model has no logit for is in no distribution, and does not count: Gemma 3's
    tokenizer has one such. Whether rows use it is asked of the rows (``token_range``).

    Args:
        student_tokens: ``get_vocab()`` of the student's tokenizer.
        teacher_tokens: that of the teacher's.
        student_logits: how many logits the student gives.
        teacher_logits: how many the teacher gives.
        vocab: "strict", all tokens and logits must be the same; "common", the first ones, all
            others being one more token; "common_only", the first ones, the others left out.
        cached: the teacher is a top-k cache, from which tokens beyond any number can be left out.
            With a teacher in memory, all that both have logits for must be the same.

    Raises:
        InputError: they cannot be compared in this mode; the message says why, and what could be
            done.
    """
    if vocab not in MODES:
        raise InputError(f"--vocab must be one of {', '.join(MODES)}, got {vocab!r}")
    ours = _by_number(student_tokens, student_logits)
    theirs = _by_number(teacher_tokens, teacher_logits)
    shared = min(student_logits, teacher_logits)
    conflicts = sorted(n for n in ours.keys() & theirs.keys() if ours[n] != theirs[n])
    common = min([shared, *conflicts[:1]])
    only_student = sum(n >= common or n not in theirs for n in ours)
    only_teacher = sum(n >= common or n not in ours for n in theirs)
    fewer = min(len(ours), len(theirs))
    agreeing = len(ours) - only_student
    if agreeing < _SHARED_AT_LEAST * fewer or fewer == 0:
        raise InputError(_different(ours, theirs, student_tokens, teacher_tokens, agreeing))
    found = Vocabularies(vocab, common, student_logits, teacher_logits, only_student, only_teacher)
    if vocab == "strict":
        _check_strict(found, student_tokens, teacher_tokens)
    elif common < shared and not cached:
        token = (ours[common], theirs[common])
        raise InputError(
            f"student and teacher share their first {common:,} tokens, but token {common} is "
            f"{token[0]!r} for the student and {token[1]!r} for the teacher, and both have logits "
            f"for it. Resize one of them to {common} (model.resize_token_embeddings), or cache the "
            "teacher (cache_teacher.py), which leaves such tokens to the tail"
        )
    return found


def compared_first(vocab: str, student: int, teacher: int) -> int | None:
    """How many first tokens a loss is over, where others are left out; None where none are.

    Args:
        vocab: one of ``MODES``.
        student: how many logits the student gives.
        teacher: how many the teacher gives, or its cache knows of.
    """
    return min(student, teacher) if vocab == COMMON_ONLY and student != teacher else None


def measured_first(student: int, teacher: int, tokens: int | None = None) -> int | None:
    """The same of the KL to the teacher and the overlap that are logged.

    The KL to a teacher that alone has further tokens is infinite, whatever the student learns, if
    these are one more token: it is over the common ones then.

    Args:
        student: how many logits the student gives.
        teacher: how many the teacher gives.
        tokens: what the loss is over.
    """
    return student if tokens is None and teacher > student else tokens


def compared_in_words(student: int, teacher: int, vocab: str) -> str:
    """Over which tokens held-out KL is, for a caption; "" where both have the same."""
    if student == teacher:
        return ""
    tokens = measured_first(student, teacher, compared_first(vocab, student, teacher))
    others = "the others as one" if tokens is None else "the others left out"
    return f", over the {min(student, teacher):,} tokens that both have, {others}"


def _by_number(tokens: Mapping[str, int], logits: int) -> dict[int, str]:
    """The tokens that have logits."""
    return {number: token for token, number in tokens.items() if number < logits}


def _check_strict(
    found: Vocabularies, student_tokens: Mapping[str, int], teacher_tokens: Mapping[str, int]
) -> None:
    """Raise InputError unless all is the same."""
    # Of the larger of the two, so that a token beyond one's logits is the same for both.
    most = max(found.student, found.teacher)
    ours, theirs = _by_number(student_tokens, most), _by_number(teacher_tokens, most)
    differing = [n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n)]
    if differing:
        number = min(differing)
        raise InputError(
            f"student and teacher have tokenizers that differ from token {number} on (student "
            f"{ours.get(number)!r}, teacher {theirs.get(number)!r}; {found.only_student} tokens "
            f"are the student's only, {found.only_teacher} the teacher's only). {BOTH_MODES}"
        )
    if found.student != found.teacher:
        raise InputError(
            f"student and teacher have the same tokenizer but {found.student} and {found.teacher} "
            f"logits: one is padded. {BOTH_MODES}"
        )


def _different(
    ours: dict[int, str],
    theirs: dict[int, str],
    student_tokens: Mapping[str, int],
    teacher_tokens: Mapping[str, int],
    agreeing: int,
) -> str:
    number = next((n for n in sorted(ours) if ours[n] != theirs.get(n)), 0)
    token = ours.get(number)
    return (
        f"student and teacher have different tokenizers ({len(student_tokens)} and "
        f"{len(teacher_tokens)} tokens, {agreeing} of them in common from the first on; {token!r} "
        f"for one is number {number} for the student and "
        f"{teacher_tokens.get(str(token), 'none')} for the teacher). The loss compares "
        "probabilities token by token, and neither has probabilities of the other's tokens: choose "
        "a teacher and a student of one model family"
    )
