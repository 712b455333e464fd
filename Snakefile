# Notebooks x architectures -> comparison -> pages. `make book` runs it; on a cluster:
#   snakemake --executor slurm --jobs 20 --rerun-incomplete --rerun-triggers mtime --config archs=all
# A run's output here is its marker: Snakemake deletes the outputs of a job that fails, and a result that is
# published must survive that.
import sys

from vlalign_utils.pipeline import registry, staleness
from vlalign_utils.pipeline.registry import COMPARISON


rule pages:
    input:
        ".cache/steps/comparison",
    output:
        touch(".cache/steps/pages"),
    shell:
        "{sys.executable:q} -m vlalign_utils pages"


rule comparison:
    input:
        staleness.runs(config.get("archs", "")),
    output:
        touch(".cache/steps/comparison"),
    params:
        nb=registry.load().comparison,
        arch=COMPARISON,
    shell:
        "{sys.executable:q} -m vlalign_utils run --arch {params.arch:q} --nb {params.nb:q} --if-stale"


rule notebook:
    output:
        # The run leaves its own marker; this one differs when a source was edited meanwhile, and lapses.
        touch(".cache/runs/{arch}/{nb}/{inputs}"),
    threads: 1
    priority: lambda wildcards: int(wildcards.nb[:2])  # the later notebooks take longer: start them first
    shell:
        "{sys.executable:q} -m vlalign_utils run --arch {wildcards.arch:q} --nb {wildcards.nb:q}"
