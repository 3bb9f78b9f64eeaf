package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/goccy/go-yaml"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/problem"
)

// Forms of data on standard output.
const (
	formatTable = "table"
	formatJSON  = "json"
	formatYAML  = "yaml"
)

// show prints data: the value for programs, or what table writes for people. A proto message is a value too.
func (a *app) show(value any, table func(*rows)) error {
	if m, ok := value.(proto.Message); ok {
		value = objectOf(m.ProtoReflect())
	}
	if a.flags.output == formatTable {
		r := &rows{w: tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)}
		table(r)
		return r.w.Flush()
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(value); err != nil {
		return problem.Wrap(err, problem.ReasonInternal, "encoding the answer")
	}
	text := b.Bytes()
	if a.flags.output == formatYAML {
		var err error
		if text, err = yaml.JSONToYAML(text); err != nil {
			return problem.Wrap(err, problem.ReasonInternal, "encoding the answer")
		}
	}
	_, err := a.out.Write(text)
	return err
}

// rows writes a table. Cells from a server are printed without control characters.
type rows struct{ w *tabwriter.Writer }

func (r *rows) add(cells ...any) {
	for i, c := range cells {
		text := cell(c)
		if text == "" {
			text = "-"
		}
		if i > 0 {
			fmt.Fprint(r.w, "\t")
		}
		fmt.Fprint(r.w, text)
	}
	fmt.Fprintln(r.w)
}

// fold writes a row whose last cell is a text that somebody wrote at length: on as many lines as it takes, each below the one before.
func (r *rows) fold(cells ...any) {
	last := len(cells) - 1
	lines := folded(cell(cells[last]))
	r.add(append(slices.Clone(cells[:last]), lines[0])...)
	for _, text := range lines[1:] {
		fmt.Fprintln(r.w, strings.Repeat("\t", last)+text)
	}
}

// folded parts a text between words, and longer words anywhere.
func folded(s string) []string {
	const most = 80
	var out []string
	line := []rune(nil)
	for _, word := range strings.Fields(s) {
		w := []rune(word)
		if len(line) > 0 && len(line)+1+len(w) <= most {
			line = append(append(line, ' '), w...)
			continue
		}
		if len(line) > 0 {
			out = append(out, string(line))
		}
		for ; len(w) > most; w = w[most:] {
			out = append(out, string(w[:most]))
		}
		line = w
	}
	return append(out, string(line))
}

// line writes free text.
func (r *rows) line(format string, args ...any) {
	fmt.Fprintln(r.w, printable(fmt.Sprintf(format, args...)))
}

func cell(c any) string {
	switch c := c.(type) {
	case *timestamppb.Timestamp:
		if c == nil {
			return ""
		}
		return stamp(c.AsTime())
	case time.Time:
		return stamp(c)
	case *durationpb.Duration:
		if c == nil {
			return ""
		}
		return c.AsDuration().String()
	case *v1.EntryRef:
		if c == nil {
			return ""
		}
		return strconv.FormatUint(c.Index, 10)
	case bool:
		if c {
			return "yes"
		}
		return "no"
	}
	return oneLine(fmt.Sprint(c))
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// printable keeps what is not seen, and could make text pass for something else on a terminal, out of it: control
// characters, and Unicode's formatting characters and separators of lines.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
			return '·'
		}
		return r
	}, s)
}

// oneLine is printable, without the line breaks that would make one row look like several: what stands in a row was
// written by others.
func oneLine(s string) string { return strings.ReplaceAll(printable(s), "\n", "·") }

// brief is the beginning of a text that has a column for itself.
func brief(s string) string {
	const most = 80
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}

// object is a JSON object in a given order.
type object []member

type member struct {
	name  string
	value any
}

// MarshalJSON keeps the order.
func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := json.Marshal(m.name)
		if err != nil {
			return nil, err
		}
		b.Write(name)
		b.WriteByte(':')
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		if err := e.Encode(m.value); err != nil {
			return nil, err
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// objectOf is a message as programs want it: names as in the .proto file, whole numbers as numbers, times as
// RFC 3339, durations as Go writes them, bytes as base64, claims as the JSON that they are, and every field there, set or not. protojson does none of
// the first three.
func objectOf(m protoreflect.Message) any {
	switch t := m.Interface().(type) {
	case *timestamppb.Timestamp:
		return t.AsTime().UTC().Format(time.RFC3339Nano)
	case *durationpb.Duration:
		return t.AsDuration().String()
	case *structpb.Struct: // claims, which are JSON already
		return t.AsMap()
	}
	fields := m.Descriptor().Fields()
	out := make(object, 0, fields.Len())
	for i := range fields.Len() {
		f := fields.Get(i)
		v := m.Get(f)
		switch {
		case f.IsList():
			list := make([]any, v.List().Len())
			for j := range list {
				list[j] = valueOf(f, v.List().Get(j))
			}
			out = append(out, member{string(f.Name()), list})
		case f.Message() != nil && !m.Has(f):
			out = append(out, member{string(f.Name()), nil})
		default:
			out = append(out, member{string(f.Name()), valueOf(f, v)})
		}
	}
	return out
}

func valueOf(f protoreflect.FieldDescriptor, v protoreflect.Value) any {
	switch {
	case f.Message() != nil:
		return objectOf(v.Message())
	case f.Enum() != nil:
		return string(f.Enum().Values().ByNumber(v.Enum()).Name())
	}
	return v.Interface()
}
