"""`rlhf label ...`: judgements in and out, and where a comparison comes from."""

import typer

from flows import exchange

label = typer.Typer(help="Judgements: take them in, hand them on, and see where one comes from.", no_args_is_help=True)
label.command("import")(exchange.import_judgements)
label.command("export")(exchange.export)
label.command("show")(exchange.show)
