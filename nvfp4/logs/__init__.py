"""Turn calibration logs into statistics, plots and sensitive layers.

`command` reads the command line, and `entry` carries it out. `reading` takes lines from logs into
the `series` of their layers, `statistics` counts them in bounded memory, `rows` and `summary` make
the summary, `lists` finds sensitive layers, and `outputs`, `plots` and `text` show it all.
"""
