// Command bailment is server, agent and command line of Bailment. What it does stands in package cli; this file only
// hands over the process: arguments in, exit code out. It guarantees nothing by itself.
package main

import (
	"os"

	"github.com/bailment/bailment/internal/cli"
)

func main() { os.Exit(cli.Main()) }
