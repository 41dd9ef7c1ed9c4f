"""Classifiers of images and of texts: one class a sample, one row of logits a prediction."""

from torch import nn

from .. import models
from ..data.collator import Collator
from ..data.layout import CLASSES
from ..data.source import Source
from ..data.types import DataCollator, ProcessingClass
from .base import Task


class Classification(Task):
    """What both kinds of classifiers have in common."""

    noun = "a classifier"
    outputs = "classes"
    layout = CLASSES
    has_classes = True
    scores = {"margin": "margin", "entropy": "certainty (negative entropy)"}
    of_class = " of their class", " of its class"
    audit_parts = {1: ("representation", "quantization", "relearning"), 2: ("reference",)}
    conventions = (
        "Margin: log p(true class) − log of the sum of the others' probabilities.",
        "AUC: P(forget > unseen) + ½ P(equal) by the margin, within classes, weighted by forget samples; 95% bootstrap "
        "interval. Above 0.5 is memory, below 0.5 a trace of the removal.",
        "JSD: ½ KL(P‖M) + ½ KL(Q‖M), M = (P + Q)/2. RF-JSD: between the mean prediction of the unlearned model on forget "
        "samples and the original's on unseen ones, class by class.",
    )

    def __init__(self, model: nn.Module):
        models.check_single_label(model)
        self.limits = models.limits(model)
        self.config = models.pretrained(model).config
        self.num_labels = self.num_outputs = self.config.num_labels or 0
        called: dict = self.config.id2label or {}
        generic = [f"LABEL_{i}" for i in range(self.num_labels)]
        names = [str(called.get(i, name)) for i, name in enumerate(generic)]
        self.class_names = None if names == generic else names

    def collator(
        self, example: Source, processing_class: ProcessingClass | None, data_collator: DataCollator | None
    ) -> Collator:
        return Collator(example, processing_class, data_collator, **self.limits)


class ImageClassification(Classification):
    name = "image-classification"
    pipeline_tag = "image-classification"
    auto_class = "AutoModelForImageClassification"


class TextClassification(Classification):
    name = "text-classification"
    pipeline_tag = "text-classification"
    auto_class = "AutoModelForSequenceClassification"
