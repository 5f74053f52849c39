"""The commands of `python -m model.demo`: scenes, tokenizer, train, average, evaluate.

Parses arguments and prints; torch is imported only by the commands that need it.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from model.demo import CHECKPOINT_DIR


def _add_picture_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="which scenes (default: 0)")
    parser.add_argument("--count", type=int, default=16, help="how many pictures (default: 16)")
    parser.add_argument("--width", type=int, help="pixels, 96-1024 (default: from the seed)")
    parser.add_argument("--height", type=int, help="pixels, 96-1024 (default: from the seed)")
    parser.add_argument("--quality", type=int, default=75, help="JPEG and WebP (default: 75)")
    parser.add_argument("--questions", type=int, default=2, help="a picture (default: 2)")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m model.demo",
        description="The bundled Qwen3-VL checkpoint: its scenes, its training, its accuracy.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    scenes = commands.add_parser("scenes", help="write pictures and captions.jsonl")
    _add_picture_arguments(scenes)
    scenes.add_argument("--out", type=Path, required=True, help="folder to write to")
    scenes.add_argument("--format", choices=("jpeg", "png", "webp"), default="jpeg")

    tokenizer = commands.add_parser("tokenizer", help="write tokenizer, template and configs")
    tokenizer.add_argument("--model_dir", type=Path, required=True, help="checkpoint to write to")

    _add_train(commands.add_parser("train", help="train the checkpoint, or resume"))

    average = commands.add_parser("average", help="write the mean of several weights")
    average.add_argument("--model_dir", type=Path, required=True, help="checkpoint to write to")
    average.add_argument("weights", type=Path, nargs="+", help="model.safetensors files")

    evaluate = commands.add_parser("evaluate", help="measure a checkpoint on held-out scenes")
    _add_picture_arguments(evaluate)
    evaluate.set_defaults(count=500)
    evaluate.add_argument("--model_dir", type=Path, default=CHECKPOINT_DIR)
    evaluate.add_argument(
        "--format", choices=("jpeg", "png", "webp"), help="(default: each in turn)"
    )
    evaluate.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    evaluate.add_argument("--dtype", default="float32", help="(default: float32)")
    evaluate.add_argument("--batch-size", type=int, default=32, help="prompts (default: 32)")
    evaluate.add_argument("--show-wrong", type=int, default=0, help="wrong answers to print")
    evaluate.add_argument(
        "--min-descriptions", type=float, default=0.0, help="fail below this share, 0-1"
    )
    evaluate.add_argument(
        "--min-questions", type=float, default=0.0, help="fail below this share, 0-1"
    )
    return parser


def _add_train(train: argparse.ArgumentParser) -> None:
    train.add_argument("--model_dir", type=Path, default=CHECKPOINT_DIR, help="with a tokenizer")
    train.add_argument("--work-dir", type=Path, required=True, help="state.pt, weights, settings")
    train.add_argument(
        "--minutes", type=float, default=110.0, help="in all, resumed parts included"
    )
    train.add_argument("--processes", type=int, default=2, help="data parallel, a core each")
    train.add_argument("--batch-size", type=int, default=16, help="pictures a process and step")
    train.add_argument("--text-rows", type=int, default=12, help="of them, how many train the text")
    train.add_argument("--learning-rate", type=float, default=1.6e-3, help="at its peak")
    train.add_argument("--vision-only", type=float, default=0.1, help="first share of the time")
    train.add_argument("--save-minutes", type=float, default=4.0, help="between saves")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--device", default="cpu", help="cpu, or cuda with --processes 1")
    train.add_argument(
        "--publish", action="store_true", help="write the averaged weights to --model_dir as well"
    )


def _scenes(args: argparse.Namespace) -> int:
    from model.demo.examples import PictureSettings, make_example, write_examples

    settings = PictureSettings(args.format, args.quality, args.width, args.height, args.questions)
    examples = (make_example(args.seed, index, settings) for index in range(args.count))
    written = write_examples(args.out, examples)
    print(f"{written} pictures and captions.jsonl in {args.out}")
    return 0


def _tokenizer(args: argparse.Namespace) -> int:
    from model.demo.architecture import write_configs
    from model.demo.tokenizer import write_tokenizer

    tokenizer = write_tokenizer(args.model_dir)
    write_configs(args.model_dir)
    print(f"{tokenizer.get_vocab_size()} tokens and the configuration in {args.model_dir}")
    return 0


def _train(args: argparse.Namespace) -> int:
    from model.demo.train import TrainSettings, train

    settings = {name: value for name, value in vars(args).items() if name != "command"}
    train(TrainSettings(**settings))
    return 0


def _average(args: argparse.Namespace) -> int:
    from model.demo.architecture import average_weights, write_weights

    write_weights(args.model_dir, average_weights(args.weights))
    print(f"the mean of {len(args.weights)} weights in {args.model_dir}")
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from model.demo.evaluate import Answerer, evaluate, evaluation_examples
    from model.demo.examples import FORMATS, PictureSettings

    formats = [args.format] if args.format else list(FORMATS)
    settings = [
        PictureSettings(name, args.quality, args.width, args.height, args.questions)
        for name in formats
    ]
    answerer = Answerer(args.model_dir, device=args.device, dtype=args.dtype)
    examples = evaluation_examples(args.seed, args.count, settings)
    report = evaluate(answerer, examples, batch_size=args.batch_size)
    print(report.table())
    for prompt, right, said in itertools.islice(report.wrong, args.show_wrong):
        print(f"- {prompt}\n    right: {right}\n    said:  {said}")
    floors = {"descriptions": args.min_descriptions, "questions": args.min_questions}
    missed = [row for row, floor in floors.items() if report.accuracy(row) < floor]
    for row in missed:
        print(f"{row}: {report.accuracy(row):.4f} is below {floors[row]:.4f}", file=sys.stderr)
    return 1 if missed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = _parser()
    args = parser.parse_args(arguments)
    commands = {
        "scenes": _scenes,
        "tokenizer": _tokenizer,
        "average": _average,
        "train": _train,
        "evaluate": _evaluate,
    }
    if args.command is None:
        parser.print_help()
        return 0
    if getattr(args, "count", 1) < 1:
        parser.error(f"--count is {args.count}; it must be at least 1")
    try:
        return commands[args.command](args)
    except ValueError as e:
        parser.error(str(e))


if __name__ == "__main__":
    sys.exit(main())
