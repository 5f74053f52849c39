"""Train the bundled checkpoint: data-parallel on CPU cores, or on one GPU.

The clock drives the schedule: `--minutes` is a promise, whatever else the machine is doing, and a
resumed run goes on where it stopped. Processes share one gradient buffer and meet at a barrier
twice a step, so all of them hold the same weights.
"""

import json
import math
import multiprocessing as mp
import os
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from model.demo.architecture import build_model, write_weights
from model.demo.batches import IGNORE, Batch, BatchWorkers, Row, RowMaker, collate
from model.demo.labels import TOKEN_LABELS
from model.demo.language import QUESTION_KINDS
from model.demo.network import AuxiliaryHeads, VisionOutput, initialise, read, see
from model.demo.optimizer import FlatParameters, parameters

_LABEL_WEIGHTS: Final = {
    "shape": 3.0,
    "color": 1.0,
    "size": 1.0,
    "cell": 0.5,
    "rank": 1.0,
    "background": 0.5,
}
_TEXT_WEIGHT: Final = 2.0
_DEEP_WEIGHT: Final = 0.3
_EMPTY_WEIGHT: Final = 0.3  # most visual tokens show no object; they must not drown the others
_WARMUP_STEPS: Final = 150
_BARRIER_SECONDS: Final = 600.0


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """One run. minutes: training time in all, resumed parts included; batch_size: per process."""

    model_dir: Path
    work_dir: Path
    minutes: float = 110.0
    batch_size: int = 16
    text_rows: int = 12
    processes: int = 2
    seed: int = 0
    learning_rate: float = 1.6e-3
    weight_decay: float = 0.05
    ema_decay: float = 0.998
    vision_only: float = 0.1
    save_minutes: float = 4.0
    publish: bool = False
    device: str = "cpu"


def label_loss(logits: Tensor, labels: Mapping[str, Tensor], metrics: dict[str, float]) -> Tensor:
    """Weighted sum of the per-token classifications: logits [batch, tokens, all classes]."""
    losses = []
    parts = torch.split(logits, list(TOKEN_LABELS.values()), dim=-1)
    for (name, size), part in zip(TOKEN_LABELS.items(), parts, strict=True):
        weights = torch.ones(size, device=logits.device)
        if name != "background":
            weights[0] = _EMPTY_WEIGHT
        loss = F.cross_entropy(part.flatten(0, 1), labels[name].flatten(), weights)
        metrics[name] = loss.item()
        losses.append(_LABEL_WEIGHTS[name] * loss)
    return torch.stack(losses).sum()


class Trainer:
    """One process's model and the losses on it."""

    def __init__(self, settings: TrainSettings, gradient: Tensor | None = None) -> None:
        self.settings = settings
        self.device = torch.device(settings.device)
        self.model = build_model(settings.model_dir)
        vision, text = self.model.config.vision_config, self.model.config.text_config
        self.heads = AuxiliaryHeads(vision.hidden_size, text.hidden_size)
        torch.manual_seed(settings.seed)
        maker = RowMaker(settings.model_dir)
        sample = np.concatenate(
            [maker.make(np.random.default_rng([settings.seed, i])).patches for i in range(64)]
        )
        initialise(self.model, torch.from_numpy(sample).float() / 127.5 - 1, settings.seed)
        for probe in self.heads.children():
            assert isinstance(probe, nn.Linear)
            probe.weight.data.zero_()
        modules: list[nn.Module] = [self.model.to(self.device), self.heads.to(self.device)]
        if gradient is None:
            gradient = torch.zeros(sum(p.numel() for p in parameters(modules)), device=self.device)
        self.flat = FlatParameters(
            modules, gradient, weight_decay=settings.weight_decay, ema_decay=settings.ema_decay
        )

    def resume(self) -> dict[str, Any]:
        """Load an earlier part of the run; returns its counts, empty at the start."""
        path = self.settings.work_dir / "state.pt"
        if not path.exists():
            return {}
        state: dict[str, Any] = torch.load(path, map_location=self.device)
        self.flat.load(state.pop("flat"))
        return state

    def tensors(self, batch: Batch) -> dict[str, Tensor]:
        names = ("occupancy", "token_ids", "segments", "positions", "targets", "weights", "owners")
        arrays = {name: torch.from_numpy(getattr(batch, name)) for name in names}
        arrays |= {f"label {n}": torch.from_numpy(a) for n, a in batch.labels.items()}
        moved = {name: tensor.to(self.device) for name, tensor in arrays.items()}
        moved["patches"] = torch.from_numpy(batch.patches).to(self.device).float() / 127.5 - 1
        return moved

    def loss(self, batch: Batch, *, text: bool, metrics: dict[str, float]) -> Tensor:
        """The training loss; `metrics` receives its parts."""
        data = self.tensors(batch)
        seen = see(self.model, data["patches"], batch.grid)
        occupancy = F.binary_cross_entropy_with_logits(
            self.heads.occupancy(seen.first), data["occupancy"].float()
        )
        labels = {name: data[f"label {name}"] for name in TOKEN_LABELS}
        deep = label_loss(self.heads.deep_tokens(seen.deepstack[0]), labels, {})
        total = occupancy + label_loss(self.heads.tokens(seen.visual), labels, metrics)
        total = total + _DEEP_WEIGHT * deep
        metrics["occupancy"] = occupancy.item()
        if text:
            logits, targets, is_answer = self.answers(data, seen, self.settings.text_rows)
            weights = data["weights"][: self.settings.text_rows][is_answer]
            losses = F.cross_entropy(logits, targets, reduction="none")
            answer = (losses * weights).sum() / weights.sum()
            metrics["text"] = answer.item()
            total = total + _TEXT_WEIGHT * answer
        return total

    def answers(
        self, data: Mapping[str, Tensor], seen: VisionOutput, num_rows: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [answer tokens, vocabulary] of the first rows, their targets, where they are."""
        rows = slice(0, num_rows)
        seen = VisionOutput(seen.first, seen.visual[rows], [d[rows] for d in seen.deepstack])
        hidden = read(
            self.model,
            seen,
            data["token_ids"][rows],
            data["segments"][rows],
            data["positions"][rows],
        )
        is_answer = data["targets"][rows] != IGNORE
        logits = self.model.lm_head(hidden[is_answer])
        return logits, data["targets"][rows][is_answer], is_answer

    @torch.no_grad()
    def exact_match(self, held_out: list[Batch]) -> dict[str, float]:
        """Share of turns whose every token is the likeliest one, by kind of turn.

        All likeliest under the right answer's own prefix means greedy decoding writes that answer.
        """
        totals: defaultdict[str, list[bool]] = defaultdict(list)
        for batch in held_out:
            data = self.tensors(batch)
            seen = see(self.model, data["patches"], batch.grid)
            logits, targets, is_answer = self.answers(data, seen, len(batch.turns))
            right = torch.ones_like(is_answer)
            right[is_answer] = logits.argmax(-1) == targets
            owners = torch.full_like(data["owners"], -1)
            owners[:, :-1] = data["owners"][:, 1:]
            for row, turns in enumerate(batch.turns):
                for index, turn in enumerate(turns):
                    exact = bool(right[row][owners[row] == index].all())
                    totals[turn.kind].append(exact)
                    if turn.kind in QUESTION_KINDS:
                        totals["questions"].append(exact)
        return {kind: sum(hits) / len(hits) for kind, hits in totals.items()}


def learning_rate(settings: TrainSettings, progress: float, step: int) -> float:
    """Linear warm-up in steps, then a cosine over the run's time down to nothing."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return settings.learning_rate * min(1.0, step / _WARMUP_STEPS) * max(cosine, 0.002)


def held_out_batches(model_dir: Path, num_pictures: int) -> list[Batch]:
    """Scenes from a stream that training never draws from, a batch for each grid among them."""
    maker, rng = RowMaker(model_dir), np.random.default_rng([0xE7A1, 2])
    by_grid: defaultdict[tuple[int, int], list[Row]] = defaultdict(list)
    for _ in range(num_pictures):
        row = maker.make(rng)
        by_grid[row.grid].append(row)
    return [collate(rows) for rows in by_grid.values()]


class _Run:
    """Rank 0's book-keeping: the clock, the log, the checkpoints."""

    def __init__(self, trainer: Trainer, state: Mapping[str, Any]) -> None:
        self.trainer, self.settings = trainer, trainer.settings
        self.step = int(state.get("step", 0))
        self.pictures = int(state.get("pictures", 0))
        self.elapsed = float(state.get("elapsed_seconds", 0.0))
        self.started = time.monotonic() - self.elapsed
        self.saved = self.elapsed
        self.sums: defaultdict[str, list[float]] = defaultdict(list)
        self.held_out = held_out_batches(self.settings.model_dir, 200)

    def progress(self) -> float:
        self.elapsed = time.monotonic() - self.started
        return self.elapsed / (60 * self.settings.minutes)

    def record(self, metrics: Mapping[str, float], num_pictures: int) -> None:
        self.pictures += num_pictures
        for name, value in metrics.items():
            self.sums[name].append(value)
        if self.step % 50 == 0:
            self.log({name: round(sum(v) / len(v), 4) for name, v in self.sums.items()})
            self.sums.clear()
        if self.elapsed - self.saved > 60 * self.settings.save_minutes:
            self.save()

    def log(self, values: Mapping[str, float]) -> None:
        line = {
            "minutes": round(self.elapsed / 60, 2),
            "step": self.step,
            "pictures": self.pictures,
        }
        print(json.dumps(line | dict(values)), flush=True)

    def save(self) -> None:
        """Evaluate the averaged weights, then write them and everything a resumed run needs."""
        self.saved = self.elapsed
        flat, settings = self.trainer.flat, self.settings
        counts = {"step": self.step, "pictures": self.pictures, "elapsed_seconds": self.elapsed}
        partial = settings.work_dir / "state.partial"
        torch.save({**counts, "flat": flat.state()}, partial)
        os.replace(partial, settings.work_dir / "state.pt")
        flat.swap_average()
        scores = self.trainer.exact_match(self.held_out)
        self.log({f"exact {kind}": round(score, 4) for kind, score in sorted(scores.items())})
        write_weights(settings.work_dir, self.trainer.model.state_dict())
        if settings.publish:
            write_weights(settings.model_dir, self.trainer.model.state_dict())
        flat.swap_average()


def _train_process(
    rank: int, settings: TrainSettings, gradients: Tensor, control: Tensor, barrier: Barrier
) -> None:
    """One process's loop. control: [progress, stop], written by rank 0 between barriers."""
    torch.set_num_threads(1 if settings.processes > 1 else os.cpu_count() or 1)
    trainer = Trainer(settings, gradients[rank])
    state = trainer.resume()
    step = int(state.get("step", 0))
    run = _Run(trainer, state) if rank == 0 else None
    workers = BatchWorkers(
        settings.model_dir,
        seed=settings.seed + rank,
        start=step,
        num_workers=1,
        batch_size=settings.batch_size,
        progress=float(control[0]),
    )
    for batch in workers:
        barrier.wait(_BARRIER_SECONDS)
        progress, stop = control.tolist()
        if stop:
            break
        workers.advance(progress)
        step += 1
        metrics: dict[str, float] = {}
        trainer.flat.gradient.zero_()
        text = progress >= settings.vision_only
        torch.autograd.backward(trainer.loss(batch, text=text, metrics=metrics))
        barrier.wait(_BARRIER_SECONDS)
        rate = learning_rate(settings, progress, step)
        metrics["norm"] = trainer.flat.step(gradients.mean(0), step, rate)
        metrics["rate"] = rate * 1000
        if run is not None:
            run.step = step
            run.record(metrics, settings.batch_size * settings.processes)
            control[0] = run.progress()
            control[1] = float(control[0] >= 1.0)
    workers.stop()
    if run is not None:
        run.save()


def train(settings: TrainSettings) -> None:
    """Train for `settings.minutes`, resuming from `work_dir` where a run stopped there."""
    settings.work_dir.mkdir(parents=True, exist_ok=True)
    described = {name: str(value) for name, value in asdict(settings).items()}
    (settings.work_dir / "settings.json").write_text(json.dumps(described, indent=2) + "\n")
    trainer = Trainer(settings)
    size = trainer.flat.values.numel()
    print(json.dumps({"parameters": size, **described}), flush=True)
    del trainer
    state = settings.work_dir / "state.pt"
    done = torch.load(state)["elapsed_seconds"] / 60 / settings.minutes if state.exists() else 0.0
    gradients = torch.zeros(settings.processes, size, device=settings.device)
    control = torch.tensor([done, float(done >= 1.0)], dtype=torch.float64)
    for shared in (gradients, control):
        shared.share_memory_()  # type: ignore[no-untyped-call]
    barrier = mp.get_context("spawn").Barrier(settings.processes)
    spawn(  # type: ignore[no-untyped-call]
        _train_process, args=(settings, gradients, control, barrier), nprocs=settings.processes
    )
