"""How the rows of the engine lie in the device's memory: columns of keys and values, the same for all rows.

    | opening | music and what closes it | question | answer ............ | staging |
      O         P                          Q          N                    C

A prompt is read in three pieces, each behind the one before: the opening, which all prompts share; the prefix, which
all questions about one clip share; and the question. Each piece begins at a column of its own, whatever the lengths of
the others, and is padded there: masks compare positions, so empty columns cost memory and reading, and no meaning.

A decoding step writes each row's newest key and value into the *staging* column of that step: one slice for all rows,
as a batch that starts together has it. After C steps each row's C columns are moved to where its own answer has come
to. Two other ways were reckoned (B rows, a step of a layer):

- a pointer for each row: B small writes a step instead of one, on a TPU one after the other;
- a ring of columns with one pointer: one write, nothing to move, but the columns in which a row stands, and with them
  the order of its sums, depend on when it was let in.

Moving costs 1/C of the writes again, and C columns more to read. For that, a row finds every key in the column in which
it would stand had the row been alone: its answer is the same to the bit in any company, in bfloat16 too.
"""

import dataclasses
import math

import jax
from jax.sharding import Mesh

from mlingo_jax.models.llama_config import LlamaConfig
from mlingo_jax.models.partition import ACTIVATION_RULES

# Decoding steps between two looks at what has ended: the host's share of a token is a C-th of a round trip.
CHUNK = 8
# The shortest padded piece; longer ones are padded to powers of two, and each is a compiled program.
SHORTEST = 8
# Rows where nothing is known of the memory, and of what is free the share that rows may take: the rest is for what is
# computed, and for encoding. Past MOST_ROWS on a device keys and values take longer to read than weights.
ROWS, SHARE, MOST_ROWS = 8, 0.5, 64
# Answers' columns are a multiple, so that like limits share a compiled program.
ANSWERS = 64


@dataclasses.dataclass(frozen=True)
class Layout:
    """The sizes of all that is kept on the device, and of the programs that work on it; another is another compile.

    Attributes:
        rows: answers that are written at once.
        opening: tokens that all prompts begin with.
        prefix: columns for a clip's music and what closes it (a power of two).
        question: columns for a question (a power of two).
        answer: columns for an answer, a multiple of ANSWERS.
        prefixes: clips whose prefix is kept for further questions.
        admitted: prompts that are read at once.
        chunk: decoding steps from one look at what has ended to the next; divides ANSWERS.
    """

    rows: int
    opening: int
    prefix: int
    question: int
    answer: int
    prefixes: int
    admitted: int
    chunk: int = CHUNK

    @property
    def prompt(self) -> int:
        """Columns before the question."""
        return self.opening + self.prefix

    @property
    def answers_at(self) -> int:
        """The column of an answer's first token."""
        return self.prompt + self.question

    @property
    def staging_at(self) -> int:
        """The first staging column."""
        return self.answers_at + self.answer

    @property
    def columns(self) -> int:
        """All columns of a row."""
        return self.staging_at + self.chunk

    def grown(self, prefix: int, question: int, answer: int) -> "Layout":
        """The layout that has room for such a request besides; this one if it has room already."""
        return dataclasses.replace(
            self,
            prefix=max(self.prefix, bucket(prefix)),
            question=max(self.question, bucket(question)),
            answer=max(self.answer, -(-answer // ANSWERS) * ANSWERS),
        )


def layout(
    rows: int, opening: int, *, prefix: int = 64, question: int = 64, answer: int = 300, chunk: int = CHUNK
) -> Layout:
    """A layout for so many rows, with room for pieces of these lengths at least.

    As many prompts are read at once as rows end in a chunk when answers have about 64 tokens.
    """
    admitted = max(1, rows * chunk // 64)
    empty = Layout(rows, opening, 0, 0, 0, prefixes=max(2 * admitted, 4), admitted=admitted, chunk=chunk)
    return empty.grown(prefix, question, answer)


def bucket(tokens: int) -> int:
    """The padded length of a piece of a prompt."""
    return max(SHORTEST, 1 << (tokens - 1).bit_length())


def row_bytes(config: LlamaConfig, layout: Layout, item: int) -> int:
    """Keys and values of one row, and its share of the prefixes that are kept; `item` is the size of a number."""
    columns = layout.columns + layout.prefixes * layout.prompt / layout.rows
    return round(columns * 2 * config.num_layers * config.num_kv_heads * config.head_dim * item)


def most_rows(config: LlamaConfig, one: Layout, item: int, mesh: Mesh | None) -> int:
    """How many rows the devices have memory for, as it is now; a power of two on each part of the mesh.

    `one` is the layout of one row; `item` the size of a number in the cache. A CPU does not say, and gets ROWS.
    """
    device = jax.local_devices()[0] if mesh is None else mesh.local_devices[0]
    shape = {} if mesh is None else mesh.shape
    parts = math.prod(shape.get(axis, 1) for axis in ACTIVATION_RULES["B"])
    stats = device.memory_stats()
    if not stats:
        return ROWS * parts
    free = stats["bytes_limit"] - stats["bytes_in_use"]
    rows = int(SHARE * free / row_bytes(config, one, item) * shape.get("tensor", 1))
    return parts << min(max(rows, 1), MOST_ROWS).bit_length() - 1
