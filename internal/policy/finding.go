package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// MaxFindings is how many findings are kept. Reading stops when there are as many.
const MaxFindings = 100

// Pos is a place in a bundle's file. Line and Column count from 1; 0 means the file as a whole.
type Pos struct {
	File   string `json:"file"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
}

// String is file:line:column, as editors and CI systems understand it.
func (p Pos) String() string {
	file := p.File
	if validFilePath(file) != nil {
		// Its name may itself be hostile to a terminal.
		file = fmt.Sprintf("%q", file)
	}
	switch {
	case p.Line == 0:
		return file
	case p.Column == 0:
		return fmt.Sprintf("%s:%d", file, p.Line)
	}
	return fmt.Sprintf("%s:%d:%d", file, p.Line, p.Column)
}

// Finding is one thing that is wrong with a bundle.
type Finding struct {
	Pos     Pos    `json:"pos"`
	Message string `json:"message"`
}

// String is the finding on one line.
func (f Finding) String() string { return f.Pos.String() + ": " + f.Message }

// Findings are all that is wrong with a bundle, ordered by place. As an error they are one finding
// per line.
type Findings []Finding

func (f Findings) Error() string {
	lines := make([]string, len(f))
	for i := range f {
		lines[i] = f[i].String()
	}
	return strings.Join(lines, "\n")
}

// collector gathers findings. It keeps at most as many as it is told, and remembers that there were more.
type collector struct {
	list     Findings
	overflow bool
	most     int // 0: MaxFindings
}

func (c *collector) add(at Pos, format string, args ...any) {
	if c.full() {
		c.overflow = true
		return
	}
	c.list = append(c.list, Finding{at, oneLine(fmt.Sprintf(format, args...))})
}

// full reports that more findings would not be kept, so that looking for them is a waste.
func (c *collector) full() bool { return len(c.list) >= cmp.Or(c.most, MaxFindings) }

// findings returns the sorted list, without duplicates.
func (c *collector) findings() Findings {
	out := slices.Clone(c.list)
	slices.SortStableFunc(out, func(a, b Finding) int {
		return cmp.Or(
			cmp.Compare(a.Pos.File, b.Pos.File),
			cmp.Compare(a.Pos.Line, b.Pos.Line),
			cmp.Compare(a.Pos.Column, b.Pos.Column),
			cmp.Compare(a.Message, b.Message),
		)
	})
	out = slices.Compact(out)
	if c.overflow {
		last := out[len(out)-1].Pos
		out = append(out, Finding{Pos{File: last.File}, "stopped here; there may be more findings"})
	}
	return out
}

// maxMessage bounds a finding's text: messages quote what was found, which may be large.
const maxMessage = 400

func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if !printable(r) {
			return '\uFFFD'
		}
		return r
	}, s)
	if len(s) > maxMessage {
		s = strings.ToValidUTF8(s[:maxMessage], "") + " …"
	}
	return s
}
