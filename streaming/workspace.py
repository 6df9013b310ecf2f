"""Everything that a consumer of a data set needs, opened once; what is large is mapped and shared between processes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np

from streaming.batch import BatchReader
from streaming.catalogue import Catalogue
from streaming.dataset import Dataset, Window
from streaming.engagement_index import open_index
from streaming.history import EngagementLog
from streaming.history_check import require_histories
from streaming.inputs import Inputs
from streaming.labels.asked import AskedWindows, ask, check_surfaces, joined, within
from streaming.labels.attribution import closed, conversions, window_of
from streaming.labels.delays import DelayCurves
from streaming.labels.plan import LabelPlan
from streaming.labels.policy import Interpolation, LabelPolicy
from streaming.labels.rate_columns import LabelRateColumns
from streaming.prefetch import Prefetch
from streaming.requests import Requests, read_requests


@dataclass(frozen=True)
class Workspace:
    """A data set with its catalogues and its engagement log.

    Attributes:
        prefetch: how readers of batches work ahead.
        labels: what training does until a task's label is known; tasks that are not named wait.
        delays: how delay curves are estimated, and ``delay_groups``, the user attributes they may differ by, coarse to
            fine.
        asked_windows: by surface and task, in microseconds after the request: how long the surface waits for a
            conversion that it counts. Training does not depend on it; what is predicted, and what that is held against,
            does. The task's attribution window where none is named.
        label_rates: what label rates stand beside the dense features of every request; None for none.
    """

    dataset: Dataset
    prefetch: Prefetch.Config = field(default=Prefetch.Config(), kw_only=True)
    labels: Mapping[str, LabelPolicy] = field(default_factory=dict, kw_only=True)
    delays: DelayCurves.Config = field(default=DelayCurves.Config(), kw_only=True)
    delay_groups: tuple[str, ...] = field(default=(), kw_only=True)
    asked_windows: Mapping[str, Mapping[str, int]] = field(default_factory=dict, kw_only=True)
    label_rates: LabelRateColumns.Config | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_surfaces(self.asked_windows, self.dataset.config.surfaces)

    @cached_property
    def plan(self) -> LabelPlan:
        return LabelPlan.of(self.dataset.config.tasks, self.labels)

    @cached_property
    def inputs(self) -> Inputs:
        inputs = Inputs.of(self.dataset.config)
        rates = [] if self._rates is None else self._rates.names
        return replace(inputs, dense=inputs.dense + rates, tasks=self.plan.head_names, labels=self.plan)

    def with_label_rates(self, config: LabelRateColumns.Config | None) -> Self:
        """The same workspace with these label rates and no others; what is open already is shared."""
        if config == self.label_rates:
            return self
        made = replace(self, label_rates=config)
        opened = ("items", "users", "_index")
        vars(made).update({name: value for name, value in vars(self).items() if name in opened})
        return made

    def label_rates_before(self, window: int) -> LabelRateColumns | None:
        """What requests of ``window`` read, by the labels known before it began, there be such a window yet or not.

        None where :attr:`label_rates` is. Counts go on with the next call: keep what is needed of them.
        """
        if self._rates is not None:
            self._rates.learn_before(window)
        return self._rates

    @cached_property
    def _rates(self) -> LabelRateColumns | None:
        if self.label_rates is None:
            return None
        return self.label_rates.build(dataset=self.dataset, items=self.items, read=self._stored)

    @cached_property
    def items(self) -> Catalogue:
        return Catalogue.read(self.dataset.items(), id_column="item_id", attributes=self.dataset.config.item_attributes)

    @cached_property
    def users(self) -> Catalogue:
        return Catalogue.read(self.dataset.users(), id_column="user_id", attributes=self.dataset.config.user_attributes)

    @cached_property
    def engagements(self) -> EngagementLog:
        """The engagements of every window. Spans are cut by time, so later windows stay invisible to a request."""
        return self._index

    @cached_property
    def _index(self) -> EngagementLog:
        return open_index(self.dataset, self.items)

    def requests(self, window: int) -> Requests:
        """The window's requests in time order.

        Raises:
            DataError: they say with which histories they were written, and the engagement log holds others.
        """
        requests = self._stored(window)
        if self._rates is None:
            return requests
        return replace(requests, dense=np.concatenate([requests.dense, self._rates.of(window, requests)], axis=1))

    def _stored(self, window: int) -> Requests:
        requests = read_requests(self.dataset, window, items=self.items, users=self.users)
        if requests.history_check is not None:
            require_histories(
                self._index,
                request_id=requests.request_id,
                user_id=requests.user_id,
                time=requests.time,
                said=requests.history_check,
                source=str(self.dataset.request_file(window)),
            )
        return requests

    def learned_in(self, window: Window) -> Iterator[tuple[int, Requests]]:
        """What training is given in ``window``: see :meth:`became_known_in`."""
        return self.became_known_in(window)

    def became_known_in(self, window: Window) -> Iterator[tuple[int, Requests]]:
        """Requests of which some label became known in ``window``, by the index of the window they were made in.

        Tasks with a delay bring earlier windows' requests back, oldest first.
        """
        for made in self.dataset.teaching(window):
            requests = self.taught(self.requests(made.index), window).learned_in(window)
            if len(requests):
                yield made.index, requests

    def taught(self, requests: Requests, window: Window) -> Requests:
        """The requests with what ``window`` teaches of them in place of what is stored, a column a head."""
        return self.plan.told(requests, since=window.start, before=window.end)

    def outcomes(self, requests: Requests) -> Requests:
        """The requests with labels as they are known when the data set ends: what predictions are held against.

        Only of requests so old that every outcome would be known by then: a label that is 1 is often known sooner than
        one that is 0, and rows that are there because they are positive tell nothing of a rate.
        """
        supervision, time_C, end = requests.supervision, requests.time[requests.owner], self.dataset.windows[-1].end
        by_surface = self._by_surface(requests)
        label_CT, known_CT = supervision.label.copy(), np.full(supervision.known_time.shape, supervision.NEVER)
        for index, task in enumerate(self.dataset.config.tasks):
            label_C, known_C = closed(
                task, time_C=time_C, label_C=label_CT[:, index], known_C=supervision.known_time[:, index]
            )
            ripe_C = time_C + round(task.delay_seconds * 1_000_000) < end
            known_CT[:, index] = np.where(ripe_C & (known_C < end), known_C, supervision.NEVER)
            for rows, windows in by_surface:
                if task.name in windows:
                    label_CT[rows, index] = within(
                        label_C[rows], known_C[rows], time_C=time_C[rows], window=windows[task.name]
                    )
        return replace(requests, supervision=replace(supervision, label=label_CT, known_time=known_CT))

    def asked(self, requests: Requests, *, now: int, curves: Mapping[str, DelayCurves] | None = None) -> AskedWindows:
        """How to read the heads for each candidate's tasks, by delays known before ``now`` (laws L2, L5).

        ``curves``: :meth:`delay_curves` of then, for those who ask often.
        """
        curves = self.delay_curves(now) if curves is None else curves
        group_CG = self._delay_groups(requests)
        parts = [
            (rows, ask(self.plan, group_CG=group_CG[rows], curves=curves, windows=windows))
            for rows, windows in self._by_surface(requests)
        ]
        return joined(parts, candidates=len(group_CG)) if parts else ask(self.plan, group_CG=group_CG, curves=curves)

    def _by_surface(self, requests: Requests) -> list[tuple[np.ndarray, Mapping[str, int]]]:
        """Candidates by what is asked of them: their places, and windows by task. Empty if all tasks are read whole."""
        if not self.asked_windows:
            return []
        surfaces = self.dataset.config.surfaces
        return [
            (np.flatnonzero(requests.surface == index), self.asked_windows.get(name, {}))
            for index, name in enumerate(surfaces)
        ]

    def delay_curves(self, now: int) -> dict[str, DelayCurves]:
        """Of the tasks that are interpolated, estimated from what was known before ``now``."""
        interpolated = [
            (index, task)
            for index, (task, policy) in enumerate(zip(self.plan.tasks, self.plan.policies, strict=True))
            if isinstance(policy, Interpolation)
        ]
        if not interpolated:
            return {}
        since = now - round(self.delays.lookback_days * 86_400e6)
        parts = [self.requests(made.index) for made in self.dataset.windows if made.end > since and made.start < now]
        time_N = np.concatenate([np.zeros(0, dtype=np.int64), *(part.time[part.owner] for part in parts)])
        none_G = np.zeros((0, len(self.delay_groups)), dtype=np.int64)
        group_NG = np.concatenate([none_G, *(self._delay_groups(part) for part in parts)])
        curves = {}
        for index, task in interpolated:
            label_N = np.concatenate([np.zeros(0), *(part.supervision.label[:, index] for part in parts)])
            known_N = np.concatenate([time_N[:0], *(part.supervision.known_time[:, index] for part in parts)])
            curves[task.name] = self.delays.estimate(
                time_N=time_N,
                conversion_N=conversions(label_N, known_N),
                group_NG=group_NG,
                now=now,
                window=window_of(task),
            )
        return curves

    def _delay_groups(self, requests: Requests) -> np.ndarray:
        columns = [self.users.features.index(name) for name in self.delay_groups]
        return self.users.code[requests.user][requests.owner][:, columns]

    def reader(self, histories: dict[str, tuple[EngagementLog, int]]) -> BatchReader:
        """A reader of batches that carry ``histories``."""
        return BatchReader(
            items=self.items,
            users=self.users,
            context=self.dataset.config.context,
            histories=histories,
            prefetch=self.prefetch,
        )
