"""W&B Reports, by the real library: as it would read them back, and saved to a stand-in for the service."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, TINY
from wandb_server import KEY, WandbServer

from stylegen.config import RunError, TrainArguments, UsageError, dump_arguments, parse_arguments
from stylegen.config.privacy import for_trackers
from stylegen.report import RunRecord
from stylegen.report.differences import as_flags, differing, repetitions
from stylegen.report.workspace import publish
from stylegen.tracking import Sample, write_sample

SECTIONS = [
    "Summary", "Loss and accuracy", "Learning rate and throughput", "Style", "Samples", "Configuration",
    "How to reproduce", "Limits",
]  # fmt: skip
ENVIRONMENT = {
    "stylegen": "0.1.0", "git_commit": "0123456789abcdef", "python": "3.11.7", "packages": {"torch": "2.13.0"},
    "device": "cpu", "world_size": 1, "mixed_precision": "no",
}  # fmt: skip


@pytest.fixture(scope="module")
def stand_in():
    import wandb

    wandb.teardown()  # what another test has left
    with WandbServer() as server:
        yield server
        wandb.teardown()


@pytest.fixture(autouse=True)
def away(monkeypatch, tmp_path):
    """Nobody is logged in, no settings of this machine are read, and no server answers."""
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")


@pytest.fixture
def server(stand_in, monkeypatch):
    stand_in.forget()
    for name, value in stand_in.environment.items():
        monkeypatch.setenv(name, value)
    return stand_in


@pytest.fixture
def make_run(tmp_path):
    """`make_run("name", best=3.0, ...)` makes the record of a run of 4 steps; what else is given are its arguments."""

    def make(name: str, *, best: float = 3.0, sent: bool = True, rows: list[dict] | None = None, **arguments):
        folder = tmp_path / "secret folder" / name
        folder.mkdir(parents=True)
        text = str(tmp_path / "secret folder" / "text.txt")
        given = {
            "train_file": [text],
            "max_train_steps": 4,
            "learning_rate": 5e-5,
            "output_dir": str(folder),
            "run_name": name,
            **arguments,
        }
        (folder / "config.yaml").write_text(dump_arguments(TrainArguments(**given)))
        (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
        lines = rows_of_a_run(best) if rows is None else rows
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
        write_sample(folder, Sample(4, "step 4, prompts ['ROMEO']", ("ROMEO\n# not a heading\n``` love",)))
        if sent:
            (folder / "wandb_run_id").write_text(f"id{name[:4]}")
        return RunRecord.read(folder)

    return make


def rows_of_a_run(best: float) -> list[dict]:
    rows = []
    for step, loss in ((0, 9.0), (2, best), (4, best + 1)):
        place = {"train/global_step": step, "train/epoch": step / 2, "train/tokens_seen": step * 100}
        if step:
            rows.append({
                "train/loss": loss, "train/learning_rate": 1e-3, "train/grad_norm": 1.0, **place,
                "perf/tokens_per_second": 1000.0 * best, "perf/step_seconds": 0.1, "perf/data_wait_fraction": 0.0,
                "perf/max_memory_bytes": 10**8,
            })  # fmt: skip
        rows.append({
            "eval/loss": loss, "eval/accuracy": 1 / loss, "eval/perplexity": 2**loss, "eval/bits_per_byte": loss / 2,
            "eval/tokens": 100, **place,
        })  # fmt: skip
        rows.append({
            "style/distance": 1.5, "style/distance_low": 1.25, "style/distance_high": 2.0, "style/copy_rate": 0.0625,
            "style/copy_rate_validation": 0.0, "style/longest_copy": 9.0, **place,
        })  # fmt: skip
    return rows


def dry(tmp_path, *records, entity=None, project=None) -> dict:
    path = tmp_path / "report.json"
    assert publish([*records], entity=entity, project=project, dry_run=path) == str(path)
    return json.loads(path.read_text())


def blocks(report: dict, kind: str) -> list[dict]:
    return [block for block in report["spec"]["blocks"] if block["type"] == kind]


def text_of(block: dict) -> str:
    return block.get("text", block.get("content", "")) + "".join(map(text_of, block.get("children", [])))


def words(report: dict) -> str:
    return "\n".join(map(text_of, report["spec"]["blocks"]))


def sets_of_runs(report: dict) -> list[dict]:
    return [runs for grid in blocks(report, "panel-grid") for runs in grid["metadata"]["runSets"]]


def panels(report: dict) -> list[dict]:
    grids = blocks(report, "panel-grid")
    return [panel for grid in grids for panel in grid["metadata"]["panelBankSectionConfig"]["panels"]]


# --- what it says and shows


def test_one_run_has_everything_that_was_measured(make_run, tmp_path):
    record = make_run("one")
    report = dry(tmp_path, record)
    assert [text_of(heading) for heading in blocks(report, "heading")] == SECTIONS
    assert report["displayName"] == "Training of one"
    best = "The best validation loss is 3.0000 nats per token (perplexity 8.00, 1.5000 bits per byte, "
    assert words(report).lstrip().startswith(best) and report["description"].startswith(best)
    assert "after step 2 of 4." in words(report)
    assert "| before training | 0 | 0.00 | 9.0000 | 11.11% | 512.00 | 4.5000 |" in words(report)
    assert "the best model lies in the run directory one\n" in words(report).replace("speed:", "\nspeed:")
    assert "torch 2.13.0, 1 process on cpu, commit 0123456789abcdef, precision no" in words(report)
    kinds = [panel["viewType"] for panel in panels(report)]
    assert kinds.count("Run History Line Plot") == 13
    assert {"Weave", "Media Browser", "Run Comparer"} <= set(kinds)


def test_a_panel_draws_what_the_runs_have_logged(make_run, tmp_path):
    names = {name for row in rows_of_a_run(1.0) for name in row}
    for records in ([make_run("one")], [make_run("two"), make_run("three", optim="muon")]):
        report = dry(tmp_path, *records)
        lines = [panel["config"] for panel in panels(report) if panel["viewType"] == "Run History Line Plot"]
        assert lines and all(
            line["chartTitle"] and line["yAxisTitle"] and line["xAxisTitle"] for line in lines
        )
        assert {metric for line in lines for metric in line["metrics"]} <= names
        assert {line["xAxis"] for line in lines} <= {"train/epoch", "train/global_step", "train/tokens_seen"}


def test_a_panel_appears_only_where_there_is_something_to_show(make_run, tmp_path):
    first = rows_of_a_run(2.0)[:1]
    report = dry(tmp_path, make_run("young", rows=first))
    assert "Style" not in [text_of(heading) for heading in blocks(report, "heading")]
    assert words(report).strip().startswith("No evaluation after training yet")
    used = [{**row, "perf/mfu": 0.4} for row in rows_of_a_run(2.0) if "style/copy_rate" not in row]
    metrics = [panel["config"].get("metrics") for panel in panels(dry(tmp_path, make_run("used", rows=used)))]
    assert ["perf/mfu"] in metrics and ["style/copy_rate"] not in metrics


def test_panels_do_not_lie_on_each_other(make_run, tmp_path):
    for grid in blocks(dry(tmp_path, make_run("one"), make_run("two", seed=1)), "panel-grid"):
        cells = [
            (x, y)
            for panel in grid["metadata"]["panelBankSectionConfig"]["panels"]
            for x in range(panel["layout"]["x"], panel["layout"]["x"] + panel["layout"]["w"])
            for y in range(panel["layout"]["y"], panel["layout"]["y"] + panel["layout"]["h"])
        ]
        assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24


def test_it_shows_exactly_these_runs(make_run, tmp_path):
    report = dry(tmp_path, make_run("aaaa"), make_run("bbbb", optim="muon"))
    assert len(sets_of_runs(report)) == 5
    for runs in sets_of_runs(report):
        (only,) = runs["filters"]["filters"]
        assert (only["key"], only["op"], only["value"]) == (
            {"section": "run", "name": "name"}, "IN", ["idaaaa", "idbbbb"]
        )  # fmt: skip
        assert runs["grouping"] == []


def test_several_runs_are_compared(make_run, tmp_path):
    report = dry(
        tmp_path, make_run("aa_a", best=3.0), make_run("bb|b", best=2.0, optim="muon", learning_rate=0.5)
    )
    assert report["displayName"] == "2 runs compared: aa_a, bb|b"
    assert "of 2 runs is that of bb|b: 2.0000 nats" in words(report)
    summary, differences = [block["content"] for block in blocks(report, "markdown-block")]
    plain, best = summary.splitlines()[2:]
    assert plain.startswith("| aa\\_a | 3.0000 | 33.33% | 8.00 | 1.5000 | 2 | 4 | 2.00 | **3,000** | 6.25% |")
    assert best.startswith(
        r"| bb\|b | **2.0000** | **50.00%** | **4.00** | **1.0000** | 2 | 4 | 2.00 | 2,000 |"
    )
    assert differences.splitlines()[2:] == ["| learning\\_rate | 5e-05 | 0.5 |", "| optim | adamw | muon |"]
    (comparer,) = [panel for panel in panels(report) if panel["viewType"] == "Run Comparer"]
    assert comparer["config"] == {"diffOnly": "split"}


def test_runs_that_are_equal_are_not_ranked(make_run, tmp_path):
    runs = [make_run(name, best=best) for name, best in (("a", 2.0), ("b", 2.0), ("c", 3.0))]
    report = dry(tmp_path, *runs)
    assert "of 3 runs is that of a and b: 2.0000 nats" in words(report)
    summary = next(iter(blocks(report, "markdown-block")))["content"]
    assert [line.split(" | ")[1] for line in summary.splitlines()[2:]] == [
        "**2.0000**",
        "**2.0000**",
        "3.0000",
    ]


def test_runs_that_differ_in_their_seed_are_one_curve(make_run, tmp_path):
    cases = ((1, "adamw", 2.0), (2, "adamw", 3.0), (1, "muon", 1.0), (2, "muon", 1.5))
    runs = [make_run(f"{optim[:2]}{seed}", best=best, seed=seed, optim=optim) for seed, optim, best in cases]
    report = dry(tmp_path, *runs)
    table = next(block["content"] for block in blocks(report, "markdown-block") if "seed" in block["content"])
    assert table.splitlines()[2:] == [
        "| optim = adamw | 2 | 2.5000 | 2.0000 | 3.0000 |", "| optim = muon | 2 | 1.2500 | 1.0000 | 1.5000 |"
    ]  # fmt: skip
    grouped = [runs["grouping"] for runs in sets_of_runs(report)]
    assert grouped[0] == [{"section": "config", "name": "optim.value"}] and grouped[-1] == []
    loss = next(
        panel["config"] for panel in panels(report) if panel["config"].get("metrics") == ["eval/loss"]
    )
    assert (loss["groupAgg"], loss["groupArea"]) == ("mean", "minmax")


def test_what_is_grouped_by_reaches_into_mappings(make_run, tmp_path):
    runs = [make_run(f"{seed}-{width}", seed=seed, config_overrides={"n_layer": 2, "n_embd": width})
            for seed, width in ((1, 8), (2, 8), (1, 16))]  # fmt: skip
    report = dry(tmp_path, *runs)
    assert sets_of_runs(report)[0]["grouping"] == [
        {"section": "config", "name": "config_overrides.value.n_embd"}
    ]
    assert "| config\\_overrides = n\\_layer=2,n\\_embd=8 | 2 |" in words(report)


def test_what_sets_runs_apart():
    runs = [{"a": 1, "seed": 1, "run_name": "x"}, {"a": 1, "seed": 2, "b": None}, {"a": 2, "seed": 1, "b": 3}]
    assert differing(runs) == ["a", "seed", "b"]
    assert repetitions(runs) == [[0, 1], [2]]
    assert repetitions(runs[1:]) == [] and repetitions(runs[:1]) == []


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        ({"a": [1, "x y"], "b": True, "c": None}, "--a 1 'x y' --b=true"),
        ({"d": {"n": 2, "p": 0.5}, "e": "-x"}, "--d=n=2,p=0.5 --e=-x"),
        ({"d": {"n": "a,b"}}, """'--d={"n": "a,b"}'"""),
    ],
)
def test_arguments_become_flags(settings, flags):
    assert as_flags(settings) == flags


def test_the_commands_repeat_the_runs(make_run, tmp_path, monkeypatch):
    records = [
        make_run("aaaa", optim="muon", config_overrides={"n_layer": 2}, sample_prompts=["ROMEO:", "a b"]),
        make_run(
            "bbbb", max_train_steps=None, num_train_epochs=2, document_separator="\n\n", eval_on_start=False
        ),
    ]
    report = dry(tmp_path, *records)
    monkeypatch.chdir(tmp_path)
    preset, commands = [text_of(block) for block in blocks(report, "code-block")][-2:]
    (tmp_path / "preset.yaml").write_text(preset)
    for record, command in zip(records, re.split(r"^python ", commands, flags=re.MULTILINE)[1:], strict=True):
        script, *argv = shlex.split(command)
        assert script == "run_clm.py"
        again = yaml.safe_load(
            dump_arguments(parse_arguments(TrainArguments, argv, positional="preset", usage=""))
        )
        expected = {**for_trackers(record.settings), "output_dir": f"out/{record.name}"}
        assert {**again, "run_name": record.name} == expected


def test_no_folder_of_this_machine_is_told(make_run, tmp_path):
    report = dry(tmp_path, make_run("one"), make_run("two", seed=1))
    assert "text.txt" in words(report) and "secret folder" not in json.dumps(report)


def test_who_repeats_a_run_does_not_push_its_model(make_run, tmp_path):
    report = dry(tmp_path, make_run("one", push_to_hub=True, hub_model_id="me/one"))
    assert "push_to_hub" not in words(report)


def test_a_title_fits_in(make_run, tmp_path):
    report = dry(
        tmp_path, *(make_run(f"{number:02} a rather long name of a run", seed=number) for number in range(12))
    )
    assert len(report["displayName"]) == 128 and report["displayName"].endswith("…")
    assert {panel["config"].get("limit") for panel in panels(report)} == {12, None}


def test_runs_of_one_name_are_told_apart(make_run, tmp_path):
    report = dry(tmp_path, make_run("aaaa", run_name="same"), make_run("bbbb", run_name="same"))
    assert report["displayName"] == "2 runs compared: same (idaaaa), same (idbbbb)"


# --- the library, no server


def test_a_dry_run_asks_nobody(make_run, tmp_path, monkeypatch):
    report = dry(tmp_path, make_run("one", project="verse"))
    assert report["project"] == {"name": "verse", "entityName": "ENTITY"}
    assert {json.dumps(runs["project"]) for runs in sets_of_runs(report)} == {
        '{"name": "verse", "entityName": "ENTITY", "id": "PROJECT_ID"}'
    }
    monkeypatch.setenv("WANDB_ENTITY", "team")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    record = make_run("two", project="verse")
    assert dry(tmp_path, record)["project"] == {"name": "theirs", "entityName": "team"}
    assert dry(tmp_path, record, entity="e", project="p")["project"] == {"name": "p", "entityName": "e"}


@pytest.mark.parametrize("count", [1, 3])
def test_the_library_reads_a_dry_run_back(make_run, tmp_path, server, count):
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces.reports.v2 import internal
    from wandb_workspaces.reports.v2.interface import UnknownBlock

    written = dry(tmp_path, *(make_run(f"run{number}", seed=number) for number in range(count)))
    server.projects.add(("ENTITY", "stylegen"))
    report = wr.Report._from_model(internal.ReportViewspec.model_validate(written))
    read = json.loads(report._to_model().model_dump_json(by_alias=True, exclude_none=True))
    for runs in sets_of_runs(read):
        assert runs["project"].pop("id") != "PROJECT_ID"  # the server's
        runs["project"]["id"] = "PROJECT_ID"
    assert read == written
    assert not [block for block in report.blocks if isinstance(block, UnknownBlock)]


# --- the server


def test_a_report_is_published_and_then_updated(make_run, server):
    import wandb_workspaces.reports.v2 as wr

    records = [make_run("aa/a".replace("/", "#")), make_run("bbbb", optim="muon")]
    for record in records:
        server.add_run("stylegen", (record.directory / "wandb_run_id").read_text())
    address = publish(records, entity=None, project=None)
    assert re.fullmatch(rf"{server.url}/tester/stylegen/reports/2-runs-compared-aa-a-bbbb--\w+", address)
    (report,) = server.reports.values()
    assert (report.entity, report.project, report.saves) == ("tester", "stylegen", 1)
    assert report.title == "2 runs compared: aa#a, bbbb"
    assert wr.Report.from_url(address).title == report.title

    report.spec["discussionThreads"] = [{"id": "what was said"}]
    metrics = records[0].directory / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"eval/loss": 3.0', '"eval/loss": 0.125'))
    again = publish([records[1], RunRecord.read(records[0].directory)], entity=None, project=None)
    (updated,) = server.reports.values()
    assert updated.saves == 2 and updated.id == report.id and again.rpartition("--")[2] in address
    assert "0.1250 nats" in updated.description and updated.spec["discussionThreads"] == [
        {"id": "what was said"}
    ]

    publish(records[:1], entity="tester", project="stylegen")  # other runs: another report
    assert [report.title for report in server.reports.values()] == [updated.title, "Training of aa#a"]
    assert server.unknown == []


def test_the_same_run_twice_is_one(make_run, server):
    record = make_run("one")
    server.add_run("stylegen", "idone")
    publish([record, record], entity=None, project=None)
    assert [report.title for report in server.reports.values()] == ["Training of one"]


# --- what can be wrong


def test_what_is_not_installed_is_named(make_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(
        UsageError, match=r'^--wandb needs wandb-workspaces, .* pip install "stylegen\[report\]"$'
    ):
        publish([make_run("one")], entity=None, project=None)


def test_a_run_that_was_never_sent(make_run, tmp_path):
    record = make_run("one", sent=False)
    for path in (None, tmp_path / "report.json"):
        with pytest.raises(UsageError, match=r"one is not on wandb, .*; train with --report_to wandb$"):
            publish([record], entity=None, project=None, dry_run=path)
    (record.directory / "wandb_run_id").write_text("\n")
    with pytest.raises(UsageError, match="is not on wandb"):
        publish([record], entity=None, project=None)


def test_runs_of_two_projects(make_run, tmp_path):
    records = [make_run("one", project="p"), make_run("two", project="q")]
    with pytest.raises(UsageError, match=r"^the runs are of different projects \(p, q\), .* with --project"):
        publish(records, entity=None, project=None)
    assert dry(tmp_path, *records, project="p")["project"]["name"] == "p"


def test_nobody_is_logged_in(make_run, server, monkeypatch):
    import wandb

    wandb.teardown()  # else it remembers the key
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(
        UsageError, match=r"^not logged in to wandb; run `wandb login`, or set WANDB_API_KEY$"
    ):
        publish([make_run("one")], entity=None, project=None)


@pytest.mark.parametrize("key", ["short", KEY])
def test_a_key_that_is_not_accepted(make_run, server, monkeypatch, key):
    monkeypatch.setenv("WANDB_API_KEY", key)
    server.status = 401
    with pytest.raises(
        UsageError, match=r"^wandb at .* does not accept the key; run `wandb login --relogin`"
    ) as caught:
        publish([make_run("one")], entity=None, project=None)
    assert key not in str(caught.value)


def test_no_network(make_run, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with pytest.raises(
        RunError, match=r"^wandb at http://127.0.0.1:9 cannot be reached \(.*\); the local report is"
    ):
        publish([make_run("one")], entity=None, project=None)


def test_a_server_in_trouble(make_run, server):
    server.status = 503
    with pytest.raises(
        RunError, match=r"cannot be reached \(it answers 503\); the local report is written, try"
    ):
        publish([make_run("one")], entity=None, project=None)


def test_a_server_that_does_not_know_who_asks(make_run, server):
    server.refused.add("Viewer")
    with pytest.raises(RunError, match=r"does not work: .*you may not Viewer.*; try again later$"):
        publish([make_run("one")], entity=None, project=None)


def test_a_project_that_does_not_exist(make_run, server):
    with pytest.raises(
        UsageError, match=r"^wandb has no project tester/stylegen, .* --entity and --project$"
    ):
        publish([make_run("one")], entity=None, project=None)
    assert server.projects == set()  # the library would have made it


def test_a_run_that_is_only_offline(make_run, server, tmp_path):
    server.add_run("stylegen", "another")
    record = make_run("one")
    with pytest.raises(
        UsageError,
        match=r"one \(run idone\) is not in tester/stylegen on wandb; name .* send it first: wandb sync wandb/off",
    ):
        publish([record], entity=None, project=None)
    life = tmp_path / "wandb" / "offline-run-20260101_000000-idone"
    life.mkdir(parents=True)
    with pytest.raises(UsageError, match=rf"send it first: wandb sync {re.escape(str(life))}$"):
        publish([record], entity=None, project=None)
    assert server.reports == {}


def test_a_server_that_refuses_the_report(make_run, server):
    server.add_run("stylegen", "idone")
    server.refused.add("upsertView")
    with pytest.raises(RunError, match=r"^wandb did not take the report: .*you may not upsertView"):
        publish([make_run("one")], entity=None, project=None)


def test_a_place_that_cannot_be_written_to(make_run, tmp_path):
    with pytest.raises(
        UsageError, match=r"^--dry_run .*none/r.json cannot be written: No such file or directory;"
    ):
        publish([make_run("one")], entity=None, project=None, dry_run=tmp_path / "none" / "r.json")


# --- the command


def test_the_command_writes_the_local_report_first(make_run, tmp_path, capsys, monkeypatch):
    from stylegen.report.__main__ import main

    monkeypatch.setattr(
        "stylegen.report.pages.draw_figures", lambda rows, folder: []
    )  # they take most of the time
    record, path = make_run("one", sent=False), tmp_path / "report.json"
    asked = [str(record.directory), "--wandb", "--dry_run", str(path), "--entity", "e", "--project", "p"]
    assert main(asked) == 2
    output = capsys.readouterr()
    assert (
        output.out == f"{record.directory / 'report.html'}\n" and (record.directory / "report.md").is_file()
    )
    assert output.err.startswith(f"error: {record.directory} is not on wandb")
    (record.directory / "wandb_run_id").write_text("id")
    assert main(asked) == 0
    assert capsys.readouterr().out.splitlines() == [str(record.directory / "report.html"), str(path)]
    assert json.loads(path.read_text())["project"] == {"name": "p", "entityName": "e"}


@pytest.mark.parametrize("flag", ["--entity", "--project", "--dry_run"])
def test_what_is_about_the_report_needs_it(capsys, flag):
    from stylegen.report.__main__ import main

    assert main(["a-run", flag, "x"]) == 2
    assert (
        capsys.readouterr().err
        == f"error: {flag} is about the W&B Report; give --wandb too, or leave it out\n"
    )


@pytest.mark.slow
def test_a_run_that_is_online_and_its_report_find_each_other(command, text_file, tmp_path):
    """The real commands in real processes: what the panels draw is what the run has sent."""
    with WandbServer() as server:
        trained = command(
            "run_clm.py", "--train_file", str(text_file), *TINY, "--mixed_precision", "no", "--max_train_steps", "4",
            "--eval_steps", "2", "--logging_steps", "2", "--sample_steps", "2", "--style_steps", "eval",
            "--sample_max_new_tokens", "120", "--report_to", "wandb", "--project", "verse", "--output_dir", "out/a-run",
            environment={**server.environment, "WANDB_DIR": str(tmp_path)},
        )  # fmt: skip
        assert trained.returncode == 0, trained.stderr
        reported = subprocess.run(
            [sys.executable, "-m", "stylegen.report", "out/a-run", "--wandb"], cwd=tmp_path, capture_output=True,
            text=True, env={**os.environ, **server.environment, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert reported.returncode == 0, reported.stderr
    assert reported.stdout.splitlines()[-1].startswith(
        f"{server.url}/tester/verse/reports/Training-of-a-run--"
    )
    (run,) = server.runs.values()
    (report,) = server.reports.values()
    sent = {name for row in run.history for name in row}
    drawn = [panel["config"] for panel in panels({"spec": report.spec})]
    for config in drawn:
        assert {*config.get("metrics", []), config.get("xAxis"), *config.get("mediaKeys", [])} <= {
            *sent,
            None,
        }
    assert len(drawn) >= 15 and {"samples", "figures/loss"} <= sent and run.summary["best/loss"]
    assert {name["filters"]["filters"][0]["value"][0] for name in sets_of_runs({"spec": report.spec})} == {
        run.id
    }
    assert server.unknown == []
