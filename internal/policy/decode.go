package policy

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/spelling"
)

// The leaves of a document. They keep the place they came from, so that a check made much later
// still points at the text. The zero value is "not given".
type (
	text struct {
		value  string
		at     Pos
		set    bool
		inline bool // the value stands in its line as it is, from column at.Column+skip on
		skip   int  // quotes before the value
		block  bool // a literal block: the value's lines are the file's lines after at.Line
	}
	number struct {
		value int64
		at    Pos
		set   bool
	}
	period struct {
		value time.Duration
		at    Pos
		set   bool
	}
	truth struct {
		value bool
		at    Pos
		set   bool
	}
)

// scalar is a leaf that decodes itself; schema is its JSON Schema type.
type scalar interface {
	decode(n *node) error
	schema() map[string]any
}

func (t *text) decode(n *node) error {
	if n.kind != kindText {
		if n.kind == kindNumber || n.kind == kindOther {
			return fmt.Errorf("must be text, not %s: put it in quotes", n.text)
		}
		return fmt.Errorf("must be text, not %s", n.kind)
	}
	*t = text{value: n.text, at: n.at, set: true}
	switch n.style {
	case 0:
		t.inline = true
	case '"', '\'':
		t.inline, t.skip = true, 1
	case '|':
		t.block = true
	}
	return nil
}

func (*text) schema() map[string]any { return map[string]any{"type": "string"} }

func (v *number) decode(n *node) error {
	if n.kind != kindNumber {
		return fmt.Errorf("must be a whole number, not %s", n.describe())
	}
	i, err := strconv.ParseInt(n.text, 10, 64)
	// Only the plain form: "010" and "0x10" are read differently by different people.
	if err != nil || strconv.FormatInt(i, 10) != n.text {
		return fmt.Errorf("must be a whole number in plain decimal digits, not %s", n.text)
	}
	*v = number{i, n.at, true}
	return nil
}

func (*number) schema() map[string]any { return map[string]any{"type": "integer"} }

func (v *period) decode(n *node) error {
	d, err := time.ParseDuration(n.text)
	if n.kind != kindText || err != nil || d < 0 {
		return fmt.Errorf("must be a duration such as 90s, 15m or 24h, not %s", n.describe())
	}
	*v = period{d, n.at, true}
	return nil
}

func (*period) schema() map[string]any {
	return map[string]any{"type": "string", "pattern": `^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$`}
}

func (v *truth) decode(n *node) error {
	if n.kind != kindOther || n.text != "true" && n.text != "false" {
		return fmt.Errorf("must be true or false, not %s", n.describe())
	}
	*v = truth{n.text == "true", n.at, true}
	return nil
}

func (*truth) schema() map[string]any { return map[string]any{"type": "boolean"} }

func (n *node) describe() string {
	if n.kind == kindNull || n.kind == kindMap || n.kind == kindList {
		return n.kind.String()
	}
	return strconv.Quote(n.text)
}

// decodeMap fills the struct that target points to from a mapping. Every key must be a field's
// yaml tag; a field tagged `need:"true"` must be there. All that is wrong is reported, and the
// fields that are right are filled all the same.
func decodeMap(found *collector, n *node, what string, target reflect.Value) bool {
	if n.kind != kindMap {
		found.add(n.at, "%s must be a mapping, not %s", what, n.describe())
		return false
	}
	ok := true
	fields := fieldsOf(target.Type())
	given := map[string]bool{}
	for _, e := range n.entries {
		i, known := fields[e.key]
		if !known {
			found.add(e.at, "unknown field %q in %s%s", e.key, what, spelling.DidYouMean(e.key, maps.Keys(fields)))
			ok = false
			continue
		}
		given[e.key] = true
		ok = decodeValue(found, e.value, e.key, target.Field(i)) && ok
	}
	for i := range target.NumField() {
		f := target.Type().Field(i)
		name := f.Tag.Get("yaml")
		if f.Tag.Get("need") == "true" && !given[name] {
			found.add(n.at, "%s needs the field %q", what, name)
			ok = false
		}
		if f.Type == reflect.TypeFor[Pos]() {
			target.Field(i).Set(reflect.ValueOf(n.at))
		}
	}
	return ok
}

func decodeValue(found *collector, n *node, name string, target reflect.Value) bool {
	if leaf, ok := target.Addr().Interface().(scalar); ok {
		if n.kind == kindNull {
			found.add(n.at, "%q is empty: give it a value or remove it", name)
			return false
		}
		if err := leaf.decode(n); err != nil {
			at := n.at
			if inner := (*placedError)(nil); errors.As(err, &inner) {
				at = inner.at
			}
			found.add(at, "%q %v", name, err)
			return false
		}
		return true
	}
	if target.Kind() == reflect.Struct {
		return decodeMap(found, n, name, target)
	}
	if n.kind != kindList {
		found.add(n.at, "%q must be a list, not %s", name, n.describe())
		return false
	}
	ok := true
	list := reflect.MakeSlice(target.Type(), len(n.items), len(n.items))
	for i, item := range n.items {
		ok = decodeValue(found, item, name, list.Index(i)) && ok
	}
	target.Set(list)
	return ok
}

// fieldsOf maps a struct's yaml tags to field numbers.
func fieldsOf(t reflect.Type) map[string]int {
	out := make(map[string]int, t.NumField())
	for i := range t.NumField() {
		if name := t.Field(i).Tag.Get("yaml"); name != "" {
			out[name] = i
		}
	}
	return out
}

// position maps a line and column inside the text's value (both from 1) to the file, where that
// can be known, and to the value's beginning otherwise.
func (t text) position(line, column int, source []string) Pos {
	at := t.at
	switch {
	case t.inline && line == 1 && at.Line <= len(source):
		row := []rune(source[at.Line-1])
		from := at.Column - 1 + t.skip
		if from <= len(row) && strings.HasPrefix(string(row[from:]), t.value) {
			at.Column = from + column
		}
	case t.block && at.Line+line <= len(source) && at.Line < len(source):
		first := source[at.Line]
		indent := len(first) - len(strings.TrimLeft(first, " "))
		at.Line, at.Column = at.Line+line, indent+column
	}
	return at
}
