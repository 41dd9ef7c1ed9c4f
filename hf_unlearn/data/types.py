"""What a user may give: data, and what makes model inputs of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import pandas as pd
import torch
from transformers import BaseImageProcessor, PreTrainedTokenizerBase

Data = (
    datasets.Dataset
    | datasets.DatasetDict
    | datasets.IterableDataset
    | torch.utils.data.Dataset
    | pd.DataFrame
    | Sequence[Mapping[str, Any]]
)
ProcessingClass = PreTrainedTokenizerBase | BaseImageProcessor
DataCollator = Callable[[list[dict]], Mapping[str, Any]]
