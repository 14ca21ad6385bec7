"""Collectives on links, by hand; clusters that make no sense."""

import pytest

from byteloom.clusters import GPUS, Cluster, Collective


def test_rings_are_as_fast_as_their_slowest_part() -> None:
    h100 = GPUS["h100"]
    within = Collective(kind="all_gather", size=10**10, ranks=8, stride=1)
    beyond = Collective(kind="all_gather", size=10**10, ranks=64, stride=1)
    copies = Collective(kind="all_reduce", size=10**10, ranks=8, stride=8)
    assert within.received == pytest.approx(7 / 8 * 10**10) and copies.received == pytest.approx(7 / 4 * 10**10)
    assert within.seconds(h100) == pytest.approx(within.received / (0.7 * h100.link), rel=0.01)
    assert beyond.seconds(h100) == pytest.approx(beyond.received / (0.7 * 8 * h100.network), rel=0.01)
    assert copies.seconds(h100) == pytest.approx(copies.received / (0.7 * h100.network), rel=0.01)
    assert Collective(kind="all_gather", size=10**10, ranks=1, stride=1).seconds(h100) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpus": 0}, "gpus is 0"),
        ({"gpu": "tpu"}, "known are a100"),
        ({"gpus": 6, "replicas": 4}, "does not divide 6"),
        ({"utilisation": 1.5}, "at most 1"),
        ({"price": -1.0}, "price"),
    ],
)
def test_senseless_clusters_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cluster(**settings)  # type: ignore[arg-type]
