"""bench_report - medians, spread and ratios as text, JSON and a picture"""

import dataclasses
import html
import json
import math
import statistics

COLORS = {"qemu": "#c44e52", "penstock": "#4c72b0",
          "penstock, 1 IOThread": "#8fb0dd"}
OTHER_COLOR = "#888888"


def summary(values):
    return {"median": statistics.median(values), "min": min(values),
            "max": max(values), "n": len(values)}


def summarize(runs):
    """runs[case][name] is a list of samples by depth; the same, summed up."""
    return {
        case: {
            name: {
                depth: {key: summary([s[depth][key] for s in samples])
                        for key in samples[0][depth]}
                for depth in samples[0]
            }
            for name, samples in by_name.items() if samples
        }
        for case, by_name in runs.items()
    }


def ratio(by_name, name, depth):
    """How many times the rate of QEMU; None without both."""
    if "qemu" not in by_name or name not in by_name:
        return None
    return (by_name["qemu"][depth]["ns"]["median"]
            / by_name[name][depth]["ns"]["median"])


def print_table(table, case, by_name):
    print(f"\n{case}", file=table)
    print(f"  {'depth':>5}  {'':22} {'ns/request':>10}  {'min - max':>17}  "
          f"{'rate / QEMU':>11}  {'p50 us':>7}  {'p99 us':>7}  "
          f"{'kicks/req':>9}  {'batch':>6}  {'VMM cpu ns/req':>14}",
          file=table)
    depths = sorted(next(iter(by_name.values())))
    for depth in depths:
        for name, by_depth in by_name.items():
            s = by_depth[depth]
            times = ratio(by_name, name, depth)
            shown = f"{times:.2f}" if times and name != "qemu" else ""
            spread = f"{s['ns']['min']:.0f} - {s['ns']['max']:.0f}"
            print(f"  {depth:>5}  {name:22} {s['ns']['median']:>10.0f}  "
                  f"{spread:>17}  {shown:>11}  "
                  f"{s['p50_ns']['median'] / 1000:>7.1f}  "
                  f"{s['p99_ns']['median'] / 1000:>7.1f}  "
                  f"{s['kicks_per_req']['median']:>9.3f}  "
                  f"{s['batch']['median']:>6.1f}  "
                  f"{s['other_cpu_ns']['median']:>14.0f}", file=table)


def print_counters(table, counters):
    if not counters:
        return
    print("\npenstock's counters, interrupts on (at most 1 of each a pass)",
          file=table)
    print(f"  {'':28} {'io_uring_enter/pass':>20}  "
          f"{'irqfd writes/pass/queue':>24}  {'requests/pass':>14}", file=table)
    for case, c in counters.items():
        print(f"  {str(case):28} {c['enters_per_pass']:>20.3f}  "
              f"{c['irqfd_writes_per_pass_and_queue']:>24.3f}  "
              f"{c['requests_per_pass']:>14.2f}", file=table)


def print_start(table, starts, memory):
    print("\none whole life of a VMM that is reset by its guest's first "
          "instruction, 4 queues", file=table)
    for name, runs in starts.items():
        cpu = summary([r["cpu_ms"] for r in runs])
        wall = summary([r["wall_ms"] for r in runs])
        print(f"  {name:22} {cpu['median']:>8.1f} ms CPU "
              f"({cpu['min']:.1f} - {cpu['max']:.1f}), "
              f"{wall['median']:.1f} ms", file=table)
    print("\nresident memory without guest RAM, 4 queues", file=table)
    for name, values in memory.items():
        print(f"  {name:22} {statistics.median(values) / 2**20:>8.1f} MiB",
              file=table)


def targets(summed, starts, memory):
    """What the project aims at: (sentence, value, whether it is reached)."""
    out = []

    def add(text, value, good):
        out.append({"target": text, "value": round(value, 3), "reached": good})

    for case, by_name in summed.items():
        if "qemu" not in by_name or "penstock" not in by_name:
            continue
        if case.queues != 1:
            continue
        for depth in sorted(by_name["penstock"]):
            times = ratio(by_name, "penstock", depth)
            where = f"{case}, depth {depth}"
            if case.backend == "null" and case.polling:
                if depth == 32:
                    add(f"{where}: rate at least 3 of QEMU's", times,
                        times >= 3)
                elif depth == 1:
                    add(f"{where}: time at most 0.6 of QEMU's", 1 / times,
                        1 / times <= 0.6)
            else:
                add(f"{where}: rate at least QEMU's", times, times >= 1)
    if "penstock" in memory:
        mib = statistics.median(memory["penstock"]) / 2**20
        add("own memory with 4 queues under 8 MiB", mib, mib < 8)
    if "penstock" in starts:
        ms = statistics.median(r["cpu_ms"] for r in starts["penstock"])
        add("start under 30 ms of CPU", ms, ms < 30)
    return out


def print_targets(table, reached):
    if reached:
        print("\ntargets", file=table)
    for t in reached:
        print(f"  {'yes' if t['reached'] else 'NO ':3}  {t['value']:>8.2f}  "
              f"{t['target']}", file=table)


def write_json(path, host, summed, counters, starts, memory, reached):
    with open(path, "w") as f:
        json.dump({
            "host": host,
            "cases": [{"backend": case.backend, "polling": case.polling,
                       "queues": case.queues, "results": by_name,
                       "counters": counters.get(case)}
                      for case, by_name in summed.items()],
            "start": starts,
            "own_memory_bytes": memory,
            "targets": reached,
        }, f, indent=1)
        f.write("\n")


@dataclasses.dataclass
class Panel:
    """One diagram: groups along the axis, in each a bar a contestant."""
    title: str
    groups: list        # (label, {name: (value, low end, high end of line)})


def _panels_over_depth(summed, bar_of):
    return [Panel(str(case),
                  [(f"depth {depth}",
                    {name: bar_of(by_depth[depth])
                     for name, by_depth in by_name.items()})
                   for depth in sorted(next(iter(by_name.values())))])
            for case, by_name in summed.items()]


def time_panels(summed):
    """Microseconds a request: median, from the best to the worst round."""
    return _panels_over_depth(summed, lambda s: tuple(
        s["ns"][k] / 1000 for k in ("median", "min", "max")))


def latency_panels(summed):
    """Microseconds of latency: half of the requests, 99 % of them."""
    def bar_of(s):
        p50, p99 = (s[k]["median"] / 1000 for k in ("p50_ns", "p99_ns"))
        return p50, p50, p99
    return _panels_over_depth(summed, bar_of)


def queue_panels(summed):
    """Thousands of requests a second over the number of queues."""
    out = []
    for backend, polling in dict.fromkeys((c.backend, c.polling)
                                          for c in summed):
        cases = [c for c in summed
                 if (c.backend, c.polling) == (backend, polling)]
        for depth in sorted(next(iter(summed[cases[0]].values()))):
            groups = []
            for case in cases:
                ends = {name: by_depth[depth]["ns"]
                        for name, by_depth in summed[case].items()}
                groups.append((
                    f"{case.queues} queue{'s' if case.queues > 1 else ''}",
                    {name: tuple(1e6 / ns[k] for k in ("median", "max", "min"))
                     for name, ns in ends.items()}))
            out.append(Panel(f"{backend}, polling "
                             f"{'on' if polling else 'off'}, depth {depth}",
                             groups))
    return out


class Picture:
    """A sheet of panels with bars on a log scale that all of them share."""

    PANEL_W, PANEL_H, COLUMNS = 420, 260, 2
    LEFT, RIGHT, TOP, BOTTOM = 60, 12, 34, 34
    HEAD = 64

    def __init__(self, panels, title, scale):
        self.panels = panels
        self.out = []
        values = [v for panel in panels for _, bars in panel.groups
                  for bar in bars.values() for v in bar if v > 0]
        self.low = 10 ** math.floor(math.log10(min(values)))
        self.high = 10 ** math.ceil(math.log10(max(values)))
        if self.high == self.low:
            self.high *= 10
        rows = -(-len(panels) // self.COLUMNS)
        self.width = self.PANEL_W * min(self.COLUMNS, len(panels))
        self.width = max(self.width, 560)
        self.height = self.HEAD + self.PANEL_H * rows
        self.out.append(
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" '
            f'height="{self.height}" font-family="sans-serif" '
            f'font-size="12">')
        self.out.append(f'<rect width="{self.width}" height="{self.height}" '
                        f'fill="#ffffff"/>')
        self.text(12, 22, title, size=15)
        self.legend(scale)
        for i, panel in enumerate(panels):
            self.panel(i % self.COLUMNS * self.PANEL_W,
                       self.HEAD + i // self.COLUMNS * self.PANEL_H, panel)
        self.out.append("</svg>")

    def text(self, x, y, words, size=12, anchor="start", color="#222222"):
        self.out.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" '
            f'text-anchor="{anchor}" fill="{color}">'
            f'{html.escape(words)}</text>')

    def rect(self, x, y, w, h, color):
        self.out.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" '
                        f'height="{h:.1f}" fill="{color}"/>')

    def line(self, x1, y1, x2, y2, color, width=1):
        self.out.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" '
                        f'y2="{y2:.1f}" stroke="{color}" '
                        f'stroke-width="{width}"/>')

    def legend(self, scale):
        names = dict.fromkeys(name for panel in self.panels
                              for _, bars in panel.groups for name in bars)
        x = 12
        for name in names:
            self.rect(x, 36, 12, 12, COLORS.get(name, OTHER_COLOR))
            self.text(x + 18, 46, name)
            x += 40 + 7 * len(name)
        self.text(x, 46, scale, color="#666666")

    def y_of(self, top, value):
        span = self.PANEL_H - self.TOP - self.BOTTOM
        part = (math.log10(max(value, self.low) / self.low)
                / math.log10(self.high / self.low))
        return top + self.TOP + span * (1 - part)

    def panel(self, left, top, panel):
        self.text(left + self.LEFT, top + 22, panel.title, size=13)
        right = left + self.PANEL_W - self.RIGHT
        value = self.low
        while value <= self.high:
            y = self.y_of(top, value)
            self.line(left + self.LEFT, y, right, y, "#dddddd")
            self.text(left + self.LEFT - 6, y + 4, f"{value:,g}",
                      size=11, anchor="end", color="#666666")
            value *= 10
        slot = (right - left - self.LEFT) / len(panel.groups)
        most = max(len(bars) for _, bars in panel.groups)
        width = min(30, slot * 0.8 / most)
        base = self.y_of(top, self.low)
        for i, (label, bars) in enumerate(panel.groups):
            middle = left + self.LEFT + slot * (i + 0.5)
            self.text(middle, base + 17, label, size=11, anchor="middle")
            for k, (name, bar) in enumerate(bars.items()):
                x = middle + (k - len(bars) / 2) * width
                self.bar(x, width, top, base, name, bar)

    def bar(self, x, width, top, base, name, bar):
        value, low, high = bar
        y = self.y_of(top, value)
        self.rect(x + 1, y, width - 2, base - y,
                  COLORS.get(name, OTHER_COLOR))
        middle = x + width / 2
        self.line(middle, self.y_of(top, low), middle, self.y_of(top, high),
                  "#222222", 1.5)
        shown = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        self.text(middle, self.y_of(top, high) - 4, shown, size=9,
                  anchor="middle")

    def write(self, path):
        with open(path, "w") as f:
            f.write("\n".join(self.out) + "\n")
