"""The commands `mgenb pool`. What is slow to load is imported inside the commands, so that --help is quick."""

from pathlib import Path
from typing import Annotated

import typer

from mgenb.cli.options import Jobs, Scheduler

app = typer.Typer(
    help="Pools: many generated and accepted models, kept as recipes. Start: mgenb pool create --help",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the pool.")]


@app.command()
def create(
    dataset: Annotated[str, typer.Option(help="A dataset by name, or a folder or .zip of your own images.")],
    arch: Annotated[str, typer.Option(help="Architecture, such as lenet.")],
    count: Annotated[int, typer.Option(help="How many accepted models; a larger one extends a pool.")],
    out: Annotated[Path, typer.Option(help="Folder of the pool.")],
    t: Annotated[float, typer.Option(help="Share of the energy that is kept, 0 to 1.")] = 0.8,
    z: Annotated[float, typer.Option(help="Size of the noise that replaces the rest.")] = 0.2,
    noise: Annotated[str, typer.Option(help="truncated, literal, gaussian or uniform.")] = "truncated",
    scale: Annotated[str, typer.Option(help="What z is measured in: relative (to a layer) or absolute.")] = "relative",
    selection: Annotated[str, typer.Option(help="energy, high, highest, fig7, random, magnitude, largest.")] = "energy",
    domain: Annotated[str, typer.Option(help="Redraw coefficients or weights.")] = "coefficients",
    transform: Annotated[str, typer.Option(help="DCT of the whole layer (flat) or of kernels (kernel).")] = "flat",
    seed: Annotated[int, typer.Option(help="Seed of data, base and candidates.")] = 0,
    epochs: Annotated[int, typer.Option(help="Epochs that the base is trained for.")] = 3,
    recipe: Annotated[str, typer.Option(help="How the base is trained.")] = "mge-adam",
    eps: Annotated[float, typer.Option(help="Accuracy that an accepted model may lose, 0 to 1.")] = 0.05,
    train_limit: Annotated[int, typer.Option(help="Images to train with; 0 for all.")] = 0,
    val_limit: Annotated[int, typer.Option(help="Images to judge with; 0 for all.")] = 0,
    samples: Annotated[bool, typer.Option("--samples", help="Use the images shipped with mgenb.")] = False,
    device: Annotated[str, typer.Option(help="Where models are judged: auto, cpu or cuda.")] = "auto",
    jobs: Jobs = None,
    scheduler: Scheduler = None,
) -> None:
    """Make a pool of accepted models; the same command goes on after an interruption.

    Example: mgenb pool create --dataset mnist --arch lenet --count 1000 --out pool
    """
    from mgenb import mge
    from mgenb.executor import workers
    from mgenb.mge import pool

    settings = mge.Settings(selection, t, noise, z, domain, scale, transform)
    base = {"seed": seed, "recipe": recipe, "epochs": epochs, "train_limit": train_limit, "samples": samples}
    judged = {"eps": eps, "val_limit": val_limit}
    plan = pool.Plan(dataset, arch, count, settings, **base, **judged)  # type: ignore[arg-type]
    with workers(jobs, scheduler) as executor:
        made = pool.create(plan, out, device=device, executor=executor)
    print(made.describe())


@app.command()
def verify(
    folder: Folder,
    rows: Annotated[int | None, typer.Option(min=1, help="How many models to make again; all otherwise.")] = None,
) -> None:
    """Make the models again, compare with the manifest. Example: mgenb pool verify pool

    Exit code 1 when a model is not the recorded one.
    """
    from mgenb.mge.pool import Pool

    verdicts = Pool(folder).verify(rows)
    same, close, different = (verdicts.count(verdict) for verdict in ("same", "close", "different"))
    print(f"{same} models bit for bit, {close} within float noise, {different} different")
    if different:
        numbers = [str(number) for number, verdict in enumerate(verdicts) if verdict == "different"]
        print(f"not the recorded ones: models {', '.join(numbers)}")
        raise typer.Exit(1)


@app.command()
def export(
    folder: Folder,
    number: Annotated[int, typer.Argument(metavar="N", help="Number of the model, from 0.")],
    file: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="File to write; never an existing one.")],
) -> None:
    """Write one model's weights. Example: mgenb pool export pool 17 model.safetensors"""
    from mgenb.mge.pool import Pool

    Pool(folder).export(number, file)
    print(f"model {number} is in {file}; where it comes from stands in {file.with_suffix('.json')}")
