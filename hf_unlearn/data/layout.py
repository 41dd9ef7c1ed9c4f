"""Which columns the rows of a dataset have, and what they are usually called."""

from dataclasses import dataclass

IMAGE_COLUMNS = ("image", "img")
TEXT_COLUMNS = ("text", "sentence", "content", "review")
PAIR_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text", "text_pair"),
)
LABEL_COLUMNS = ("labels", "label")
MODEL_INPUTS = ("pixel_values", "input_ids", "inputs_embeds")


@dataclass
class Columns:
    """Names of the columns, where they are not the usual ones.

    Attributes:
        max_length: of texts, in tokens; what is longer is cut off on the right.
    """

    image: str | None = None
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    max_length: int | None = None


@dataclass(frozen=True)
class Layout:
    """What the rows hold for one kind of models.

    Attributes:
        inputs: usual names of the columns that the model sees; the first choice that is there counts.
        expected: the same in words, for data that has none of them.
        has_classes: whether each sample has one class, in a label column; without, `labels` are all 0.
        task_columns: the columns that hold the labels of a multi-task model.
        renamed: columns and what they are called here, of data that has all of them.
    """

    inputs: tuple[tuple[str, ...], ...]
    expected: str
    has_classes: bool = False
    task_columns: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()


CLASSES = Layout(
    (*((name,) for name in MODEL_INPUTS + IMAGE_COLUMNS), *PAIR_COLUMNS, *((name,) for name in TEXT_COLUMNS)),
    f"an image ({', '.join(IMAGE_COLUMNS)}), a text ({', '.join(TEXT_COLUMNS)}) or processed inputs "
    f"({', '.join(MODEL_INPUTS)}). Name yours with image_column= or text_column=.",
    has_classes=True,
)
