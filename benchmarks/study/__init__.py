"""The study of docs/study.md: from run folders to its tables and plots.

    mlaan table configs/study/ablation --folder runs/study
    python -m benchmarks.study runs/study --out docs/study --measure

Everything on the page between `<!-- study:NAME -->` and `<!-- /study -->` is written by this, so that figures and text
cannot drift apart. What it took from the runs and measured is kept in OUT/results.json; without a folder of runs the
page and the plots are made from that file alone.
"""
