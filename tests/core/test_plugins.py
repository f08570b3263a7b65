from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from packaging.requirements import Requirement

import clf
from clf import catalogue, entrypoints, extras, offered, plugins, single
from clf.describe import describe
from clf.errors import MissingExtraError, PluginError

Install = Callable[..., Path]

GOOD = """
import clf

class FooConfig(clf.MethodConfig):
    sharpness: float = 2.0

class Foo(clf.Method[FooConfig]):
    name = "foo"
    Config = FooConfig
    defaults = {"optimizer.name": "sgd"}
    def training_step(self, batch, ctx):
        return self.backbone(batch.views[0]).sum()
"""
HOOK = """
@clf.hookimpl
def clf_methods():
    return [Foo]
"""


def rows(name: str) -> list[plugins.PluginInfo]:
    return [row for row in plugins.list_plugins() if row.name == name]


def install_foo(install: Install, source: str, **more: object) -> Path:
    return install("clf-foo", plugins={"foo": "clf_foo"}, modules={"clf_foo": dedent(source)}, **more)


def broken(name: str = "foo") -> str:
    with pytest.raises(PluginError) as caught:
        plugins.load_method(name)
    return str(caught.value)


def test_only_requirements_on_clf_are_read(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of everybody took most of the time of a command that imports nothing."""
    found = []

    def noted(text: str) -> Requirement:
        found.append(text)
        return Requirement(text)

    monkeypatch.setattr(catalogue, "Requirement", noted)
    install_foo(install, GOOD + HOOK, requires=["torch>=99", "CLF_Vision>=99; python_version > '3'"])
    assert [row.state for row in rows("foo")] == ["incompatible"]
    assert found and all("clf" in text.lower() for text in found)


def test_simclr_is_a_built_in_plugin_found_by_the_mechanism_of_third_parties() -> None:
    (row,) = rows("simclr")
    assert (row.value, row.distribution, row.version) == ("clf_simclr", "clf-vision", clf.__version__)
    assert (row.state, row.reason, row.builtin) == ("available", "", True)
    assert plugins.load_method("simclr").__name__ == "SimCLR"


def test_a_third_party_plugin_is_listed_after_the_built_in_ones_and_not_imported(install: Install) -> None:
    install_foo(install, "raise SystemExit('imported')")
    assert [row.name for row in plugins.list_plugins()][-1] == "foo"
    (row,) = rows("foo")
    assert (row.distribution, row.version, row.state, row.builtin) == ("clf-foo", "1.0", "available", False)
    assert "clf_foo" not in sys.modules


def test_a_third_party_method_loads(install: Install) -> None:
    install_foo(install, GOOD + HOOK)
    method = plugins.load_method("foo")
    assert method.name == "foo"
    assert issubclass(method, clf.Method)


@pytest.mark.parametrize(
    ("requirement", "state"),
    [
        (f"clf-vision=={clf.__version__}", "available"),
        ("clf-vision>=999", "incompatible"),
        ("CLF_Vision<0.0.1", "incompatible"),
        ("clf-vision>=999; python_version < '3'", "available"),
        ("clf-vision[train]>=999; extra == 'gpu'", "available"),
        ("numpy>=999", "available"),
        ("not a requirement !!", "available"),
    ],
)
def test_the_version_contract_is_read_from_requires_dist(install: Install, requirement: str, state: str) -> None:
    install_foo(install, GOOD + HOOK, requires=[requirement])
    (row,) = rows("foo")
    assert row.state == state
    if state == "incompatible":
        assert clf.__version__ in row.reason
        message = broken()
        assert "'foo' (clf-foo 1.0)" in message
        assert "incompatible" in message
        assert "clf_foo" not in sys.modules


def test_a_plugin_can_be_blocked_by_name_or_by_distribution(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install_foo(install, GOOD + HOOK)
    for word in ("foo", "clf-foo"):
        monkeypatch.setenv("CLF_DISABLE_PLUGINS", f"other, {word}")
        (row,) = rows("foo")
        assert row.state == "disabled"
        assert "CLF_DISABLE_PLUGINS" in broken()
    assert "clf_foo" not in sys.modules
    monkeypatch.setenv("CLF_DISABLE_PLUGINS", "other")
    assert plugins.load_method("foo").name == "foo"


def test_a_built_in_name_is_reserved(install: Install) -> None:
    install("clf-thief", plugins={"simclr": "clf_thief"}, modules={"clf_thief": "raise SystemExit"})
    ours, theirs = rows("simclr")
    assert (ours.distribution, ours.state) == ("clf-vision", "available")
    assert (theirs.distribution, theirs.state) == ("clf-thief", "conflict")
    assert "reserved" in theirs.reason
    assert plugins.load_method("simclr").__module__ == "clf_simclr"


def test_a_blocked_built_in_does_not_give_its_name_away(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("clf-thief", plugins={"simclr": "clf_thief"}, modules={"clf_thief": "raise SystemExit"})
    monkeypatch.setenv("CLF_DISABLE_PLUGINS", "clf-vision")
    assert [row.state for row in rows("simclr")] == ["disabled", "conflict"]
    assert "disabled" in broken("simclr")


def test_two_claims_on_one_name_are_both_refused_until_one_is_blocked(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_foo(install, GOOD + HOOK)
    install("clf-bar", plugins={"foo": "clf_bar"}, modules={"clf_bar": "raise SystemExit"})
    assert {(row.distribution, row.state) for row in rows("foo")} == {("clf-foo", "conflict"), ("clf-bar", "conflict")}
    message = broken()
    assert "clf-foo" in message
    assert "clf-bar" in message
    monkeypatch.setenv("CLF_DISABLE_PLUGINS", "clf-bar")
    assert plugins.load_method("foo").name == "foo"


def test_an_incompatible_rival_is_no_conflict(install: Install) -> None:
    install_foo(install, GOOD + HOOK)
    install("clf-bar", plugins={"foo": "clf_bar"}, requires=["clf-vision>=999"])
    assert {row.state for row in rows("foo")} == {"available", "incompatible"}
    assert plugins.load_method("foo").name == "foo"


def test_damaged_metadata_of_one_distribution_is_a_row_and_hurts_no_other(install: Install) -> None:
    install("clf-rubble", entry_points="[clf.plugins]\nno equals sign here\n")
    install_foo(install, GOOD + HOOK)
    assert plugins.load_method("foo").name == "foo"
    (row,) = [row for row in plugins.list_plugins() if row.state == "broken"]
    assert "clf_rubble" in row.name
    assert "metadata is damaged" in row.reason


def test_of_two_copies_of_a_distribution_the_first_on_the_path_counts(install: Install, tmp_path: Path) -> None:
    install_foo(install, GOOD + HOOK, version="2.0")
    (tmp_path / "site-clf-foo").rename(tmp_path / "newer")
    sys.path.remove(str(tmp_path / "site-clf-foo"))
    install_foo(install, GOOD + HOOK, version="1.0")
    sys.path.append(str(tmp_path / "newer"))
    assert [row.version for row in rows("foo")] == ["1.0"]


def test_an_unknown_name_gets_the_nearest_one_and_the_list() -> None:
    message = broken("simclir")
    assert "Did you mean 'simclr'?" in message
    assert "Available: " in message
    assert "simclr" in message.partition("Available: ")[2]


@pytest.mark.parametrize(
    ("source", "stage", "reason"),
    [
        ("raise RuntimeError('no luck')", "import", "RuntimeError: no luck (clf_foo.py, line 1)"),
        ("import sys\nsys.exit('bye')", "import", "SystemExit: bye (clf_foo.py, line 2)"),
        ("def f(:", "import", "SyntaxError"),
        ("import a_package_that_nobody_has", "import", "No module named 'a_package_that_nobody_has'"),
        ("from clf import no_such_name", "import", "no_such_name"),
        (GOOD, "registration", "none of the hooks clf_methods"),
        (GOOD + HOOK.replace("clf_methods", "clf_method"), "registration", "Did you mean 'clf_methods'?"),
        (GOOD + HOOK.replace("@clf.hookimpl", ""), "registration", "write @clf.hookimpl above it"),
        (GOOD + HOOK.replace("clf_methods()", "clf_methods(a, b)"), "registration", "PluginValidationError"),
        (GOOD + HOOK.replace("return [Foo]", "return 1 / 0"), "clf_methods", "ZeroDivisionError"),
        (GOOD + HOOK.replace("return [Foo]", "raise SystemExit(3)"), "clf_methods", "SystemExit: 3"),
        (GOOD + HOOK.replace("return [Foo]", "return Foo"), "clf_methods", "returned the class Foo, not a list"),
        (GOOD + HOOK.replace("return [Foo]", "pass"), "clf_methods", "returned a NoneType, not a list"),
        (GOOD + HOOK.replace("[Foo]", "['foo']"), "clf_methods", "a str is not a subclass of clf.Method"),
        (GOOD + HOOK.replace("[Foo]", "[dict]"), "clf_methods", "dict is not a subclass of clf.Method"),
        (GOOD + HOOK.replace("[Foo]", "[Foo, Foo]"), "clf_methods", "two methods are named 'foo'"),
        (GOOD + HOOK.replace("[Foo]", "[]"), "clf_methods", "one method named 'foo', and provides none"),
        (GOOD.replace('"foo"', '"fu"') + HOOK, "clf_methods", "one method named 'foo', and provides 'fu'"),
        (GOOD.replace('name = "foo"', "") + HOOK, "clf_methods", "Foo has no name"),
        (GOOD.replace("    Config = FooConfig", "") + HOOK, "clf_methods", "Foo has no Config"),
        (GOOD.replace("    Config = FooConfig", "    Config = dict") + HOOK, "clf_methods", "Foo has no Config"),
        (GOOD.replace("training_step", "step") + HOOK, "clf_methods", "Foo does not define training_step"),
        (GOOD.replace('{"optimizer.name": "sgd"}', "7") + HOOK, "clf_methods", "not a mapping"),
    ],
)
def test_every_way_to_be_broken_names_plugin_distribution_stage_and_reason(
    install: Install, source: str, stage: str, reason: str
) -> None:
    install_foo(install, source)
    message = broken()
    assert message.startswith(f"plugin 'foo' (clf-foo 1.0) is broken, stage {stage}: ")
    assert reason in message
    assert "\n" not in message
    assert plugins.load_method("simclr").name == "simclr"


def test_a_module_that_does_not_exist(install: Install) -> None:
    install("clf-foo", plugins={"foo": "clf_foo_gone"})
    assert "its module 'clf_foo_gone' does not exist" in broken()


def test_an_entry_that_is_no_module_name(install: Install) -> None:
    install("clf-foo", plugins={"foo": "not a module !"})
    assert "plugin 'foo' (clf-foo 1.0) is broken, stage import" in broken()


def test_control_c_during_an_import_passes(install: Install) -> None:
    install_foo(install, "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        plugins.load_method("foo")


def test_what_a_plugin_prints_does_not_reach_standard_output(install: Install) -> None:
    install_foo(install, "print('hello')" + GOOD + HOOK.replace("return", "print('called'); return"))
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        plugins.load_method("foo")
    assert out.getvalue() == ""
    assert err.getvalue() == "hello\ncalled\n"


def test_a_plugin_that_lacks_an_optional_package_of_ours_says_which_extra(install: Install) -> None:
    install_foo(install, "raise ModuleNotFoundError('No module named torch', name='torch')")
    with pytest.raises(MissingExtraError, match=r"plugin 'foo' .* 'torch'.*pip install 'clf-vision\[train\]'"):
        plugins.load_method("foo")


def test_only_the_absence_of_a_known_package_is_explained_by_an_extra() -> None:
    assert extras.explain(ModuleNotFoundError(name="os_gone"), "x") is None
    assert extras.explain(ImportError("libcuda.so is broken", name="torch"), "x") is None
    assert extras.explain(ModuleNotFoundError("no message, no name"), "x") is None
    found = extras.explain(ModuleNotFoundError(name="faiss.contrib"), "clf search")
    assert str(found) == (
        "clf search needs the package 'faiss', which is not installed: pip install 'clf-vision[serve]'"
    )


def test_data_sources_and_callbacks(install: Install) -> None:
    install_foo(
        install,
        """
        import clf
        from clf.callbacks import Callback

        class Watch(Callback):
            pass

        def foo(section, seed, progress):
            return None

        class Other:
            name = "other-name"
            def __call__(self, section, seed, progress):
                return None

        @clf.hookimpl
        def clf_datasets():
            return [Other(), foo]

        @clf.hookimpl
        def clf_callbacks():
            return [Watch]
        """,
    )
    plugin = plugins.load_plugin("foo")
    assert [plugins.name_of(source) for source in plugin.datasets] == ["other-name", "foo"]
    assert offered.data_source("foo")[0] is plugin.datasets[1]
    assert [callback.__name__ for callback in plugin.callbacks] == ["Watch"]
    assert plugin.methods == ()
    assert "provides none" in broken()


def test_a_plugin_without_the_data_source_that_was_asked_for(install: Install) -> None:
    install_foo(install, GOOD + HOOK)
    with pytest.raises(PluginError, match="no data source named 'foo'"):
        offered.data_source("foo")


@pytest.mark.parametrize(("hook", "value"), [("clf_datasets", "[3]"), ("clf_callbacks", "[dict]")])
def test_hooks_that_return_the_wrong_things(install: Install, hook: str, value: str) -> None:
    install_foo(install, f"import clf\n@clf.hookimpl\ndef {hook}():\n    return {value}\n")
    with pytest.raises(PluginError, match=f"stage {hook}"):
        plugins.load_plugin("foo")


def test_a_single_file_with_one_method_needs_no_hook(tmp_path: Path) -> None:
    path = tmp_path / "my_method.py"
    path.write_text(GOOD)
    method = plugins.load_method(str(path))
    assert method.name == "foo"
    assert method.Config.model_validate({"sharpness": "3"}).model_dump() == {"sharpness": 3.0}


def test_a_single_file_may_choose_by_a_hook(tmp_path: Path) -> None:
    path = tmp_path / "two.py"
    path.write_text(GOOD + "class Bar(Foo):\n    name = 'bar'\n" + HOOK)
    assert plugins.load_method(str(path)).name == "foo"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("x = 1", "subclasses found: none"),
        ("from clf_simclr import SimCLR", "subclasses found: none"),
        (GOOD + "class Bar(Foo):\n    name = 'bar'\n", "subclasses found: Foo, Bar"),
        ("import clf\nclass A(clf.Method):\n    name = 'a'\n", "A does not define training_step"),
        ("1 / 0", "ZeroDivisionError: division by zero (my_method.py, line 1)"),
        ("def f(:", "SyntaxError"),
    ],
)
def test_single_files_that_are_no_plugins(tmp_path: Path, source: str, reason: str) -> None:
    path = tmp_path / "my_method.py"
    path.write_text(source)
    message = broken(str(path))
    assert str(path) in message
    assert reason in message
    assert (single.read(str(path)).module in sys.modules) == ("stage import" not in message)


def test_a_single_file_that_does_not_exist(tmp_path: Path) -> None:
    assert "does not exist" in broken(str(tmp_path / "gone.py"))


def test_describe_tells_every_setting_with_type_default_and_meaning() -> None:
    found = describe("simclr")
    (method,) = found.methods
    settings = {setting.key: setting for setting in method.settings}
    temperature = settings["method.temperature"]
    assert (temperature.type, temperature.default) == ("float, above 0", 0.5)
    assert "tau" in temperature.description
    assert found.builtin
    assert "2002.05709" in found.text


def test_every_source_of_a_plugin_is_shown_with_its_name_in_a_configuration(
    install: Install, run_cli: Callable[..., Any]
) -> None:
    install_foo(
        install,
        """
        import clf

        def foo(section, seed, progress): ...
        def bar(section, seed, progress): ...

        @clf.hookimpl
        def clf_datasets():
            return [foo, bar]
        """,
    )
    found = describe("foo")
    assert (found.datasets, found.reachable) == (("foo", "bar"), ("foo", "foo:bar"))
    out = " ".join(run_cli("plugins", "show", "foo").out.split())
    assert "Data source foo: data.name=foo Data source bar: data.name=foo:bar" in out


def test_describe_a_third_party_plugin(install: Install) -> None:
    install_foo(install, '"""What foo is."""\n' + GOOD + HOOK)
    found = describe("foo")
    assert (found.text, found.builtin, found.distribution) == ("What foo is.", False, "clf-foo")
    assert found.methods[0].defaults == {"optimizer.name": "sgd"}
    assert found.methods[0].summary == ""


def test_recommendations_that_depend_on_settings_are_shown_as_without_any(
    install: Install, run_cli: Callable[..., Any]
) -> None:
    recommends = """
    @classmethod
    def recommended(cls, given):
        return {"train.epochs": given.get("x", 7)}
"""
    install_foo(install, GOOD + recommends + HOOK)
    assert describe("foo").methods[0].defaults == {"train.epochs": 7}
    assert "train.epochs" in run_cli("plugins", "show", "foo").out


def test_offers_of_a_group_that_nobody_has() -> None:
    assert entrypoints.offers("clf.nothing_of_the_kind") == []


def test_a_row_as_a_dictionary_has_no_private_part() -> None:
    row = catalogue.find_plugin("simclr").as_dict()
    assert set(row) == {"name", "value", "distribution", "version", "state", "reason", "builtin", "kind"}
