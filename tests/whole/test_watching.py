"""A program that converts in its own process watches what goes on, and may end it at any moment."""

import threading

import pytest

import convert_nvfp4 as c


class Enough(BaseException):
    """Raised by a watcher."""


def options_for(tiny, out, **more):
    return c.Options(source=tiny, output=out, preset="wan", quiet=True, **more)


def test_it_sees_phases_layers_and_shares_and_changes_no_byte(tiny, tmp_path, capsys):
    c.convert(options_for(tiny, tmp_path / "a.safetensors"))
    seen, here = [], threading.current_thread()

    def watcher(activity):
        assert threading.current_thread() is here
        seen.append((activity.what, activity.name, activity.share, activity.line(None, 1e9, 1e9)))

    with c.watched_by(watcher):
        c.convert(options_for(tiny, tmp_path / "b.safetensors"))
    count = len(seen)
    c.convert(options_for(tiny, tmp_path / "b.safetensors"))
    assert len(seen) == count  # nobody watches any more
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    phases = [*dict.fromkeys(what for what, *_ in seen)]
    assert phases[:2] == ["reading headers", "reading guides"]
    converting = [one for one in seen if one[0] == "converting"]
    shares = [share for _, _, share, _ in converting]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert any(name == "blocks.3.ffn.0.weight" and name in line for _, name, _, line in converting)
    assert capsys.readouterr() == ("", "")


def moments(tiny, out):
    """Count how often a watcher is called in a conversion."""
    count = 0

    def counting(_):
        nonlocal count
        count += 1

    with c.watched_by(counting):
        c.convert(options_for(tiny, out))
    return count


def test_whatever_it_raises_leaves_the_older_file_and_nothing_else(tiny, tmp_path):
    out = tmp_path / "o.safetensors"
    calls = moments(tiny, out)
    older, when = out.read_bytes(), out.stat().st_mtime_ns
    for end in sorted({0, 1, 5, calls // 3, calls // 2, calls - 5}):
        left = end

        def watcher(_):
            nonlocal left
            if not left:
                raise Enough
            left -= 1

        with pytest.raises(Enough), c.watched_by(watcher):
            c.convert(options_for(tiny, out))
        assert [path.name for path in tmp_path.iterdir()] == [out.name]
        assert (out.read_bytes(), out.stat().st_mtime_ns) == (older, when)
