"""The trade between thresholds that --help shows."""

import make_shipped

from nvfp4.logs.text import TRADE


def test_the_trade_in_help_is_what_the_shipped_summaries_give():
    titles = {title: name for name, (title, _, _) in make_shipped.MODELS.items()}
    for title, threshold, *shares in TRADE:
        found = {row[0]: row[1:] for row in make_shipped.trade(titles[title])}
        assert [f"{100 * share:.0f}" for share in found[threshold]] == [*map(str, shares)]
    used = {(titles[title], threshold) for title, threshold, *_ in TRADE}
    assert used >= {(name, threshold) for _, name, _, threshold in make_shipped.SHIPPED}


def test_the_trade_table_is_ordered():
    """A higher threshold never flags more; all of the work stays where nothing is flagged."""
    for name in make_shipped.MODELS:
        rows = [shares for _, *shares in make_shipped.trade(name)]
        assert rows == sorted(rows, key=lambda shares: shares[1])
        assert rows[-1][:2] == [0, 1]
        assert all(both <= alone for _, alone, both in rows)
    assert make_shipped.render_trade().count("\n") == len(make_shipped.THRESHOLDS) + 3
