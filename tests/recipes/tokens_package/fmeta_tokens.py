"""A recipe that lives outside fmeta: few-shot topics of token sequences."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from fmeta.runs import ACCURACY, Answered, Metric, Offer, Queries, Recipe, Support

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fmeta import Model
    from fmeta.runs import Episode
    from fmeta.tasks import ClassData, Sampler

_VOCABULARY, _LENGTH, _TOPICS, _WIDTH = 50, 16, 12, 16


@dataclass(frozen=True, kw_only=True)
class Tokens(Recipe):
    """Few-shot topics of token sequences: a topic is a window of the vocabulary that its tokens come from."""

    ways: int = 5
    """topics of a task"""
    shots: int = 1
    """support sequences of a topic in a task"""
    query: int = 3
    """query sequences of a topic in a task"""

    name: ClassVar[str] = "tokens"
    metric: ClassVar[Metric] = ACCURACY
    gives: ClassVar[frozenset[str]] = frozenset({"head", "classes", "features"})
    defaults: ClassVar[dict[str, object]] = {"inner_lr": 0.5, "protomaml.inner_lr": 0.1, "eval_steps": (0, 1, 5)}

    def sampler(self, split: str, device: torch.device) -> Sampler:
        from fmeta.tasks import episodes

        return episodes(topics(split).to(device), ways=self.ways, shots=self.shots, query=self.query)

    def offer(self) -> Offer:
        from fmeta import accuracy, cross_entropy

        return Offer(
            self._network,
            cross_entropy,
            {"accuracy": accuracy},
            ways=self.ways,
            features=_WIDTH,
            examples=self.shots + self.query,
        )

    def _network(self, outputs: str = "head", *, context: int = 0, film: int = 0, beside: str = "support") -> Model:
        import torch
        from torch import nn

        from fmeta import from_module

        class Bag(nn.Embedding):
            """Means of embeddings; unlike nn.EmbeddingBag torch differentiates it twice, as maml must."""

            def forward(self, tokens: Tensor) -> Tensor:
                return super().forward(tokens).mean(-2)

        torch.manual_seed(0)
        body = OrderedDict[str, nn.Module](embedding=Bag(_VOCABULARY, _WIDTH))
        if outputs == "head":
            body["head"] = nn.Linear(_WIDTH, self.ways)
        return from_module(nn.Sequential(body))

    def facts(self) -> dict[str, object]:
        return {"split": "test", "ways": self.ways, "shots": self.shots, "query": self.query}

    def read_support(self, path: str | Path, on_error: str) -> Support:
        """A folder with a folder of .txt files of token ids for each topic."""
        import torch

        from fmeta import Examples, InputError

        folders = [folder for folder in sorted(Path(path).glob("*")) if folder.is_dir()]
        files = [(label, file) for label, folder in enumerate(folders) for file in sorted(folder.glob("*.txt"))]
        if not files:
            raise InputError(f"tokens({str(path)!r}): no files; expected a folder of .txt files for each topic")
        x = torch.stack([read_tokens(file) for _, file in files])
        labels = torch.tensor([label for label, _ in files])
        return Support(Examples(x, labels), tuple(folder.name for folder in folders))

    def read_queries(self, path: str | Path, on_error: str) -> Queries:
        """A folder of .txt files of token ids."""
        import torch

        files = sorted(Path(path).glob("*.txt"))
        return Queries(torch.stack([read_tokens(file) for file in files]), tuple(file.name for file in files))

    def show(self, answered: Answered) -> Episode:
        from fmeta.runs import class_episode

        return class_episode(answered, as_text)


def topics(split: str) -> ClassData:
    """Sequences of every topic of a split."""
    from fmeta.core import fold, key, randint
    from fmeta.tasks import class_data

    drawn = fold(key(3), split)
    return class_data(
        {
            f"{split} topic {i}": (randint(fold(drawn, i), 8, (12, _LENGTH)) + 4 * i) % _VOCABULARY
            for i in range(_TOPICS)
        }
    )


def read_tokens(file: Path) -> Tensor:
    """The token ids of a file."""
    import torch

    from fmeta import InputError

    try:
        found = [int(word) for word in file.read_text(encoding="utf-8").split()]
    except ValueError as error:
        raise InputError(f"tokens({str(file)!r}): {error}; expected token ids, whole numbers") from error
    if len(found) != _LENGTH or not all(0 <= token < _VOCABULARY for token in found):
        raise InputError(f"tokens({str(file)!r}): expected {_LENGTH} token ids below {_VOCABULARY}")
    return torch.tensor(found)


def as_text(tokens: Tensor) -> str:
    """A sequence as people see it in the report: topic tokens by number."""
    return " ".join(f"t{token}" for token in tokens.tolist())
