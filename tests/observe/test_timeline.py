"""Timelines: their figures, their files, and what is measured of a real step and of a GPU's records."""

import importlib.util
import json

import pytest
import torch
from benchmarks.measure import peak_memory
from matplotlib.figure import Figure

from mlaan import Engine, UserError
from mlaan.execute import GraphExecutor
from mlaan.execute.graph import CudaGraphs
from mlaan.models import as_backbone
from mlaan.models.resnet import CifarResNet
from mlaan.observe.profiling import measure
from mlaan.observe.records import STEP, Event, timelines
from mlaan.observe.timeline import draw
from mlaan.plan import Kind, Step, Task
from mlaan.plan.timeline import Span, Timeline, chrome_trace, step_name


def span(lane, start, end, kind="Forward", module=0):
    return Span(f"{kind}({module})", kind, module, lane, start, end)


TWO_LANES = Timeline(
    (span(0, 0.0, 4.0), span(1, 1.0, 2.0, "Head"), span(1, 2.0, 3.0, "Backward"), span(0, 6.0, 8.0, "Update", 1)),
    ((0.0, 100), (1.0, 300), (2.5, 300), (3.0, 100)),
)


def test_overlap_is_the_share_of_busy_time_with_two_lanes_or_more():
    assert TWO_LANES.overlap == pytest.approx(2 / 6)
    assert TWO_LANES.busy == {0: 6.0, 1: 2.0}
    assert (TWO_LANES.seconds, TWO_LANES.lanes) == (8.0, (0, 1))


def test_lanes_that_only_touch_and_spans_of_one_lane_do_not_overlap():
    assert Timeline((span(0, 0.0, 1.0), span(1, 1.0, 2.0)), ()).overlap == 0
    nested = Timeline((span(0, 0.0, 3.0), span(0, 1.0, 2.0)), ())
    assert (nested.overlap, nested.busy) == (0, {0: 3.0})
    assert Timeline((span(0, 0.0, 1.0), span(1, 0.0, 1.0), span(2, 0.0, 1.0)), ()).overlap == 1
    assert Timeline((), ()).overlap == 0


def test_the_peak_is_where_the_most_is_alive_first():
    assert TWO_LANES.peak == (1.0, 300)
    assert Timeline((), ()).peak == (0.0, 0)


def test_a_step_is_named_by_all_its_tasks():
    joined = Step(Task(Kind.PROPAGATE, 1, 2), joined=(Task(Kind.BACKWARD, 1),))
    assert step_name(joined) == "Propagate(1, 2) + Backward(1)"


def test_a_chrome_trace_has_a_thread_per_lane_and_a_memory_counter_in_microseconds():
    events = json.loads(json.dumps(chrome_trace(TWO_LANES)))["traceEvents"]
    by_phase = {phase: [e for e in events if e["ph"] == phase] for phase in "MXC"}
    assert sum(map(len, by_phase.values())) == len(events)
    threads = {e["tid"] for e in by_phase["M"] if e["name"] == "thread_name"}
    assert threads == {e["tid"] for e in by_phase["X"]} == {0, 1}
    assert [(e["name"], e["ts"], e["dur"]) for e in by_phase["X"]][1] == ("Head(0)", 1e6, 1e6)
    assert [(e["ts"], e["args"]["bytes"]) for e in by_phase["C"]] == [(0, 100), (1e6, 300), (2.5e6, 300), (3e6, 100)]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    saved, real = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (saved.append(self), real(self, *a, **k))[1])
    return saved


def test_a_picture_has_lanes_modules_and_memory_over_one_time_axis(tmp_path, figures):
    draw(TWO_LANES, tmp_path / "one.png", "a step", images=16)
    assert (tmp_path / "one.png").stat().st_size > 10_000
    lanes, modules, memory = figures[0].axes
    assert lanes.get_xlim() == modules.get_xlim() == memory.get_xlim() == pytest.approx((0, 8016))
    assert [label.get_text() for label in lanes.get_yticklabels()] == ["lane 0", "lane 1"]
    assert {text.get_text() for text in lanes.texts} == {"0", "1"}
    assert lanes.get_title(loc="left") == "8000.0 ms, 2.0 img/s, lanes overlap 33.3 % of the time"
    assert [text.get_text() for text in lanes.get_legend().texts] == ["Forward", "Head", "Backward", "Update"]
    assert [text.get_text() for text in memory.texts] == [
        "0.1 KiB all the time",
        "peak 0.3 KiB in Forward(0), Head(0)",
    ]


def test_two_timelines_stand_above_each_other_on_equal_axes(tmp_path, figures):
    short = Timeline((span(0, 0.0, 1.0),), ((0.0, 600),))
    draw({"predicted": short, "measured": TWO_LANES}, tmp_path / "two.svg", "a step")
    axes = figures[0].axes
    assert [a.get_title(loc="left").split(":")[0] for a in axes if a.get_title(loc="left")] == ["predicted", "measured"]
    assert len({a.get_xlim() for a in axes}) == 1
    assert axes[2].get_ylim() == axes[5].get_ylim()


@pytest.mark.parametrize("modules", [1, 50])
def test_one_module_and_fifty_are_drawn(tmp_path, figures, modules):
    spans = [span(0, m, m + 1.0, module=m) for m in range(modules)]
    spans += [span(1, m + 0.999, m + 1.0, "Backward", m) for m in range(modules)]
    draw(Timeline(tuple(spans), ()), tmp_path / "modules.png", "a step")
    assert len(figures[0].axes) == (2 if modules == 1 else 3)
    assert len(figures[0].axes[0].texts) == modules  # numbers stand where they fit, not in the short bars
    assert figures[0].axes[-1].texts[0].get_text() == "memory is not known"


def test_every_kind_of_task_has_a_colour(tmp_path, figures):
    spans = [span(0, place, place + 1.0, kind.value) for place, kind in enumerate(Kind)]
    draw(Timeline(tuple(spans), ()), tmp_path / "kinds.png", "a step")
    assert [text.get_text() for text in figures[0].axes[0].get_legend().texts] == [
        *("Forward", "Rebuild", "Head", "Propagate", "Backward", "Update", "Norm")
    ]


def test_a_picture_that_cannot_be_drawn_says_why(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no task"):
        draw(Timeline((), ()), tmp_path / "a.png", "nothing")
    with pytest.raises(UserError, match="cannot write"):
        draw(TWO_LANES, tmp_path / "no" / "folder.png", "nowhere")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install matplotlib"):
        draw(TWO_LANES, tmp_path / "a.png", "nothing")


@pytest.fixture(scope="module")
def measured():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    backbone = as_backbone(CifarResNet(20), (3, 16, 16))
    engine = Engine(backbone, modules=3, preset="light", input_shape=(3, 16, 16), recompute="each")
    batch = torch.randn(16, 3, 16, 16), torch.randint(10, (16,))
    return engine, batch, measure(engine, *batch, steps=2, warmup=1)


def test_every_task_of_the_plan_is_measured_once_per_step(measured):
    engine, _, profile = measured
    assert len(profile.steps) == 2
    for timeline, seconds in zip(profile.steps, profile.seconds, strict=True):
        assert [s.name for s in timeline.spans] == [step_name(step) for step in engine.plan.steps]
        assert {s.kind for s in timeline.spans} >= {"Forward", "Rebuild", "Head", "Propagate", "Backward", "Update"}
        assert 0.5 * seconds < sum(s.seconds for s in timeline.spans) <= timeline.seconds <= seconds
        assert timeline.overlap == 0
    assert profile.seconds[profile.median] == min(profile.seconds)
    assert engine.executor.watch is None


def test_measured_memory_ends_where_it_began_and_peaks_as_the_allocator_says(measured):
    engine, batch, profile = measured
    expected = peak_memory(lambda: engine.step(*batch), engine.device)
    weights = sum(p.nbytes for p in engine.backbone.net.parameters())
    assert profile.base_bytes > 2 * weights + batch[0].nbytes  # with their momenta
    for timeline in profile.steps:
        assert abs(timeline.memory[-1][1] - profile.base_bytes) < 0.01 * expected
        assert timeline.peak[1] - profile.base_bytes == pytest.approx(expected, rel=0.2)
        assert [time for time, _ in timeline.memory] == sorted(time for time, _ in timeline.memory)


def test_a_step_that_runs_in_one_piece_is_refused(measured, monkeypatch):
    engine, batch, _ = measured
    monkeypatch.setattr(
        engine, "executor", GraphExecutor(engine.executor, CudaGraphs(torch.device("cuda")), lambda: None)
    )
    with pytest.raises(UserError, match=r"train\.executor = 'graph'"):
        measure(engine, *batch, steps=1, warmup=0)


PLANNED = {str(task): Step(task) for task in (Task(Kind.FORWARD, 0), Task(Kind.HEAD, 0, 0), Task(Kind.FORWARD, 1))}
GPU = [
    # the host: ranges and launches, all over long before the GPU is done
    Event(STEP, 1_000, 9_000),
    Event("Forward(0)", 1_100, 2_000, id=6),
    Event("Head(0, 0)", 2_000, 3_000),
    Event("Forward(1)", 3_000, 3_900),
    Event("aten::conv2d", 1_150, 1_900, id=1),
    Event("cudaLaunchKernel", 1_200, 1_210, id=1),  # its numbers are not the operators'
    Event("cudaLaunchKernel", 1_300, 1_310, id=2),
    Event("cuLaunchKernelEx", 2_100, 2_110, id=3),
    Event("aten::add", 3_100, 3_200, id=4),
    Event("cudaMemsetAsync", 3_950, 3_960, id=5),
    # the GPU: two streams
    Event(
        "Forward(0)", 2_000, 4_500, device=True, stream=7, id=6, operator=6
    ),  # the range as the GPU saw it: no work of its own
    Event("conv", 2_000, 3_000, device=True, stream=7, id=1, operator=1),
    Event("relu", 3_200, 4_000, device=True, stream=7, id=2, operator=1),
    Event("triton", 3_500, 5_500, device=True, stream=13, id=3),
    Event("add", 4_000, 6_000, device=True, stream=7, id=99, operator=4),  # its launch was not recorded
    Event("copy", 5_600, 5_700, device=True, stream=13, id=98, operator=4),
    Event("Memset", 6_000, 6_100, device=True, stream=7, id=5),  # after the last task
    # memory, at the host's time
    Event("[memory]", 1_180, 1_180, change=10_000),  # the CPU's
    Event("[memory]", 1_150, 1_150, device=True, change=1_000),
    Event("[memory]", 2_050, 2_050, device=True, change=500),
    Event("[memory]", 3_800, 3_800, device=True, change=-1_500),
    Event("[memory]", 9_500, 9_500, device=True, change=77),  # after the step
]


def test_a_gpus_kernels_are_told_apart_by_the_range_that_launched_them_and_lanes_by_their_stream():
    (timeline, seconds), *others = timelines(GPU, PLANNED, 5_000, on_gpu=True)
    assert not others
    assert seconds == pytest.approx(8e-6)
    found = {(s.name, s.lane): (round(s.start * 1e9), round(s.end * 1e9)) for s in timeline.spans}
    assert found == {
        ("Forward(0)", 0): (1_000, 3_000),
        ("Head(0, 0)", 1): (2_500, 4_500),
        ("Forward(1)", 0): (3_000, 5_000),
        ("Forward(1)", 1): (4_600, 4_700),
    }
    assert timeline.overlap == pytest.approx((500 + 1_500 + 100) / 4_000)


def test_a_gpus_memory_is_put_where_the_gpu_was_by_then_and_the_hosts_is_left_out():
    ((timeline, _),) = timelines(GPU, PLANNED, 5_000, on_gpu=True)
    assert [(round(t * 1e9), size) for t, size in timeline.memory] == [
        (0, 5_000),
        (150, 6_000),  # before any launch: the host's time
        (2_200, 6_500),  # relu's start
        (4_600, 5_000),  # add and copy are launched; the later start of both
    ]


def test_on_a_cpu_the_same_records_give_the_hosts_times():
    ((timeline, _),) = timelines(GPU, PLANNED, 0, on_gpu=False)
    assert [(s.name, s.lane, round(s.start * 1e9), round(s.end * 1e9)) for s in timeline.spans] == [
        ("Forward(0)", 0, 100, 1_000),
        ("Head(0, 0)", 0, 1_000, 2_000),
        ("Forward(1)", 0, 2_000, 2_900),
    ]
    assert timeline.peak[1] == 10_000


def test_steps_are_kept_apart():
    later = [e._replace(start=e.start + 20_000, end=e.end + 20_000, id=e.id and e.id + 200) for e in GPU]
    later = [e._replace(operator=e.operator and e.operator + 200) for e in later]
    two = timelines([*later, *GPU], PLANNED, 5_000, on_gpu=True)
    assert len(two) == 2
    assert [s.name for s in two[0][0].spans] == [s.name for s in two[1][0].spans]
    assert [round(s.start * 1e9) for s in two[0][0].spans] == [round(s.start * 1e9) for s in two[1][0].spans]
    assert two[0][0].peak[1] == two[1][0].peak[1] == 6_500
