package cli

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/bailment/bailment/internal/problem"
)

// confirm asks for a yes on the terminal. Without one nothing is assumed.
func (a *app) confirm(format string, args ...any) error {
	f, ok := a.in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return problem.New(problem.ReasonInvalid, "this asks for a confirmation, and standard input is not a terminal").
			WithFix("read what is shown, then run it again with --yes")
	}
	fmt.Fprintf(a.err, format+" [y/N] ", args...)
	line, err := bufio.NewReader(f).ReadString('\n')
	if answer := strings.ToLower(strings.TrimSpace(line)); err == nil && (answer == "y" || answer == "yes") {
		return nil
	}
	return problem.New(problem.ReasonCanceled, "not confirmed: nothing was done")
}
