"""The verbs: `python -m visiontune VERB`."""

import sys
from collections.abc import Callable, Sequence

from visiontune.verbs.models import embed, evaluate, export, predict
from visiontune.verbs.pictures import check, index, shard
from visiontune.verbs.proof import benchmark, compare, probe
from visiontune.verbs.recipes import copy, fit, list_, report, schema, show

VERBS: dict[str, Callable[[list[str]], int]] = {
    "fit": fit, "list": list_, "show": show, "copy": copy, "check": check, "index": index, "shard": shard,
    "predict": predict, "evaluate": evaluate, "embed": embed, "probe": probe, "compare": compare, "benchmark": benchmark,
    "export": export, "report": report, "schema": schema,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names that are not UTF-8 come out as they are
    if not words or words[0] in ("-h", "--help"):
        print("usage: python -m visiontune VERB ... (VERB --help tells more)\n")
        print("\n".join(f"  {name:10} {verb.__doc__}" for name, verb in VERBS.items()))
        return 0 if words else 2
    from visiontune.errors import UserError, near

    if words[0] not in VERBS:
        print(f"error: visiontune: no verb {words[0]!r}{near(words[0], VERBS)}; verbs: {', '.join(VERBS)}", file=sys.stderr)
        return 2
    try:
        return VERBS[words[0]](words[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `... | head`
        sys.stderr.close()
        return 0


if __name__ == "__main__":
    sys.exit(main())
