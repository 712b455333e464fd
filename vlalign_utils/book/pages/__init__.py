"""Pages generated from results, the registry and the benchmarks: one module a page, or a part of one."""
