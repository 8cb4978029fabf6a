from pathlib import Path

import yaml

from flows.deploy import _switched_off

ROOT = Path(__file__).parents[2]


def schedules(path):
    content = yaml.safe_load(path.read_text())
    return [item for entry in content["deployments"] for item in entry.get("schedules", ())]


def test_a_new_schedule_is_never_on_and_a_later_deploy_says_nothing_about_it(monkeypatch):
    """Switched off afterwards, it would be on for good where somebody was killed in between."""
    monkeypatch.chdir(ROOT)
    assert [item.get("active", "unsaid") for item in schedules(ROOT / "prefect.yaml")] == ["unsaid"]
    with _switched_off() as first:
        assert [item["active"] for item in schedules(first)] == [False]
