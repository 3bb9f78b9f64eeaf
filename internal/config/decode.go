package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/spelling"
)

// maxFile bounds a configuration file in bytes; the YAML parser's work grows faster than its input.
const maxFile = 64 << 10

// Finding is one thing that is wrong, with its place. Line and Column are 0 for what was not in a file.
type Finding struct {
	File    string `json:"file"`
	Line    int    `json:"line,omitempty"`
	Column  int    `json:"column,omitempty"`
	Key     string `json:"key"` // limits.queue; empty for the file as a whole
	Message string `json:"message"`
}

func (f Finding) String() string {
	var b strings.Builder
	if f.File != "" {
		b.WriteString(f.File + ":")
	}
	if f.Line > 0 {
		fmt.Fprintf(&b, "%d:%d:", f.Line, f.Column)
	}
	if b.Len() > 0 {
		b.WriteByte(' ')
	}
	if f.Key != "" {
		b.WriteString(f.Key + ": ")
	}
	return b.String() + f.Message
}

// Findings are all that is wrong, ordered by place. As an error they are one per line.
type Findings []Finding

func (fs Findings) Error() string {
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = f.String()
	}
	return strings.Join(lines, "\n")
}

// problemOf makes the findings a problem, or nil.
func (fs Findings) problem() error {
	if len(fs) == 0 {
		return nil
	}
	slices.SortStableFunc(fs, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return problem.Wrap(fs, problem.ReasonInvalid, "%d %s in the configuration", len(fs), plural(len(fs), "finding")).
		WithFix("mend what is named; `bailment config reference` lists every field")
}

func plural(n int, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

// LoadServer reads, checks and completes a server's configuration. An empty path is an empty file.
func LoadServer(path string) (*Server, error) { return load(path, (*Server).check) }

// LoadAgent reads, checks and completes an agent's configuration, for an agent that has these methods. An empty path is
// an empty file.
func LoadAgent(path string, has attest.Methods) (*Agent, error) { return load(path, checkAgent(has)) }

// ParseServer is LoadServer over the content of a file; name is for the findings only.
func ParseServer(name string, data []byte) (*Server, error) {
	return parse(name, data, (*Server).check)
}

// ParseAgent is LoadAgent over the content of a file; name is for the findings only.
func ParseAgent(name string, data []byte, has attest.Methods) (*Agent, error) {
	return parse(name, data, checkAgent(has))
}

func checkAgent(has attest.Methods) func(*Agent) Findings {
	return func(a *Agent) Findings { return a.check(has) }
}

// load reads a file; check looks at a role as a whole, after each field was.
func load[T any](path string, check func(*T) Findings) (*T, error) {
	if path == "" {
		return parse("", nil, check)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInvalid, "opening the configuration").WithFix("check the path given to --config")
	}
	defer func() { _ = f.Close() }() // it was only read
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInvalid, "reading the configuration %s", path)
	}
	return parse(path, data, check)
}

func parse[T any](name string, data []byte, check func(*T) Findings) (*T, error) {
	d := &decoder{file: name, places: make(map[string]place)}
	out := new(T)
	body := d.document(data)
	if body != nil {
		d.into(reflect.ValueOf(out).Elem(), body, "", limits{})
	} else if len(d.found) > 0 {
		return nil, d.found.problem() // nothing could be read
	}
	setDefaults(reflect.ValueOf(out).Elem())
	// What is wrong with a field is said once; what was wrong has its default by now.
	fields := d.found
	for _, f := range check(out) {
		if slices.ContainsFunc(fields, func(x Finding) bool { return x.Key == f.Key || strings.HasPrefix(x.Key, f.Key+".") }) {
			continue
		}
		f.File = name
		if at, ok := d.placeOf(f.Key); ok {
			f.Line, f.Column = at.line, at.column
		}
		d.found = append(d.found, f)
	}
	if err := d.found.problem(); err != nil {
		return nil, err
	}
	return out, nil
}

type place struct{ line, column int }

type decoder struct {
	file   string
	places map[string]place
	found  Findings
}

// placeOf finds a key, or the nearest thing around it that stands in the file.
func (d *decoder) placeOf(key string) (place, bool) {
	for key != "" {
		if at, ok := d.places[key]; ok {
			return at, true
		}
		i := strings.LastIndexAny(key, ".[")
		if i < 0 {
			break
		}
		key = key[:i]
	}
	return place{}, false
}

func (d *decoder) at(n ast.Node, key, format string, args ...any) {
	f := Finding{File: d.file, Key: key, Message: fmt.Sprintf(format, args...)}
	if t := n.GetToken(); t != nil && t.Position != nil {
		f.Line, f.Column = t.Position.Line, t.Position.Column
	}
	d.found = append(d.found, f)
}

func (d *decoder) whole(format string, args ...any) ast.Node {
	d.found = append(d.found, Finding{File: d.file, Message: fmt.Sprintf(format, args...)})
	return nil
}

// document parses a file of at most one document and returns its body, or nil if it says nothing.
func (d *decoder) document(data []byte) ast.Node {
	switch {
	case len(data) > maxFile:
		return d.whole("the file is larger than %d KiB", maxFile>>10)
	case !utf8.Valid(data):
		return d.whole("the file is not UTF-8")
	}
	parsed, err := parser.ParseBytes(data, 0)
	var syntax yaml.Error
	switch {
	case errors.As(err, &syntax):
		f := Finding{File: d.file, Message: syntax.GetMessage()}
		if t := syntax.GetToken(); t != nil && t.Position != nil {
			f.Line, f.Column = t.Position.Line, t.Position.Column
		}
		d.found = append(d.found, f)
		return nil
	case err != nil:
		return d.whole("it is not YAML")
	}
	var body ast.Node
	for _, doc := range parsed.Docs {
		if doc.Body == nil || doc.Body.Type() == ast.NullType || doc.Body.Type() == ast.CommentType {
			continue
		}
		if body != nil {
			d.at(doc.Body, "", "there is a second document: a configuration is one")
			return nil
		}
		body = doc.Body
	}
	return body
}

// limits are a field's tags.
type limits struct{ min, max, one string }

var (
	durationType = reflect.TypeFor[time.Duration]()
	sizeType     = reflect.TypeFor[Size]()
	rateType     = reflect.TypeFor[Rate]()
)

// into decodes a node by the type of what it goes into.
func (d *decoder) into(v reflect.Value, n ast.Node, key string, l limits) {
	switch n.(type) {
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode, *ast.MergeKeyNode:
		d.at(n, key, "anchors, aliases and tags are not taken: write the value")
		return
	}
	switch {
	case v.Type() == rateType, v.Type() == durationType, v.Type() == sizeType:
		d.scalar(v, n, key, l)
	case v.Kind() == reflect.Struct:
		d.structure(v, n, key)
	case v.Kind() == reflect.Map:
		d.mapping(v, n, key)
	case v.Kind() == reflect.Slice:
		d.list(v, n, key)
	default:
		d.scalar(v, n, key, l)
	}
}

func pairs(n ast.Node) ([]*ast.MappingValueNode, bool) {
	switch n := n.(type) {
	case *ast.MappingNode:
		return n.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}, true
	case *ast.NullNode:
		return nil, true
	}
	return nil, false
}

// each calls fn for each pair of a mapping, once per key.
func (d *decoder) each(n ast.Node, key string, fn func(name, key string, at ast.Node, value ast.Node)) {
	all, ok := pairs(n)
	if !ok {
		d.at(n, key, "is not a mapping")
		return
	}
	seen := make(map[string]bool)
	for _, p := range all {
		at, ok := p.Key.(ast.ScalarNode)
		if !ok || p.Key.Type() == ast.MergeKeyType {
			d.at(p.Key, key, "a key is plain text")
			continue
		}
		name := fmt.Sprint(at.GetValue())
		full := strings.TrimPrefix(key+"."+name, ".")
		if seen[name] {
			d.at(p.Key, full, "stands here twice")
			continue
		}
		seen[name] = true
		if t := p.Key.GetToken(); t != nil && t.Position != nil {
			d.places[full] = place{t.Position.Line, t.Position.Column}
		}
		fn(name, full, p.Key, p.Value)
	}
}

func (d *decoder) structure(v reflect.Value, n ast.Node, key string) {
	d.each(n, key, func(name, full string, at, value ast.Node) {
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if f.Tag.Get("yaml") == name {
				d.into(v.Field(i), value, full, limits{f.Tag.Get("min"), f.Tag.Get("max"), f.Tag.Get("one")})
				return
			}
		}
		d.at(at, full, "there is no such field%s", nearest(name, v.Type()))
	})
}

func (d *decoder) mapping(v reflect.Value, n ast.Node, key string) {
	v.Set(reflect.MakeMap(v.Type()))
	d.each(n, key, func(name, full string, _, value ast.Node) {
		item := reflect.New(v.Type().Elem()).Elem()
		d.into(item, value, full, limits{})
		v.SetMapIndex(reflect.ValueOf(name), item)
	})
}

func (d *decoder) list(v reflect.Value, n ast.Node, key string) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		d.at(n, key, "is not a list")
		return
	}
	out := reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values))
	for i, item := range seq.Values {
		full := fmt.Sprintf("%s[%d]", key, i)
		if t := item.GetToken(); t != nil && t.Position != nil {
			d.places[full] = place{t.Position.Line, t.Position.Column}
		}
		d.into(out.Index(i), item, full, limits{})
	}
	v.Set(out)
}

func (d *decoder) scalar(v reflect.Value, n ast.Node, key string, l limits) {
	var text string
	switch n := n.(type) {
	case *ast.StringNode:
		text = n.Value
	case *ast.LiteralNode:
		text = n.Value.Value
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		text = n.GetToken().Value
	case *ast.NullNode:
		d.at(n, key, "has no value: give one, or leave the field out")
		return
	default:
		d.at(n, key, "is not a single value")
		return
	}
	if why := setText(v, text, l); why != "" {
		d.at(n, key, "%s", why)
	}
}

// setText parses a value by its type and checks its limits. It returns what is wrong, or "".
func setText(v reflect.Value, text string, l limits) string {
	switch {
	case v.Type() == durationType:
		x, err := time.ParseDuration(text)
		if err != nil {
			return "is not a duration such as 10s or 5m"
		}
		v.SetInt(int64(x))
		return outside(x, l, time.ParseDuration)
	case v.Type() == sizeType:
		x, err := parseSize(text)
		if err != nil {
			return "is not a size such as 4096, 64KiB or 1MiB"
		}
		v.SetInt(int64(x))
		return outside(x, l, parseSize)
	case v.Type() == rateType:
		x, err := parseRate(text)
		if err != nil {
			return err.Error()
		}
		v.Set(reflect.ValueOf(x))
		return ""
	case v.Kind() == reflect.Int:
		x, err := strconv.Atoi(text)
		if err != nil {
			return "is not a whole number"
		}
		v.SetInt(int64(x))
		return outside(x, l, strconv.Atoi)
	case v.Kind() == reflect.String:
		if l.one != "" && !slices.Contains(strings.Fields(l.one), text) {
			return "is not one of " + strings.ReplaceAll(l.one, " ", ", ")
		}
		v.SetString(text)
		return ""
	}
	return fmt.Sprintf("a field of type %s can't be read", v.Type())
}

func outside[N cmp.Ordered](x N, l limits, read func(string) (N, error)) string {
	if low, err := read(l.min); l.min != "" && err == nil && x < low {
		return fmt.Sprintf("is less than %v", low)
	}
	if high, err := read(l.max); l.max != "" && err == nil && x > high {
		return fmt.Sprintf("is more than %v", high)
	}
	return ""
}

func parseSize(text string) (Size, error) {
	unit := Size(1)
	for _, u := range sizeUnits {
		if n, ok := strings.CutSuffix(text, u.name); ok {
			text, unit = n, u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n > int64(1<<62/unit) {
		return 0, errors.New("not a size")
	}
	return Size(n) * unit, nil
}

func parseRate(text string) (Rate, error) {
	bad := errors.New(`is not a rate such as "20/s 200": so many a second, so many at once`)
	per, burst, ok := strings.Cut(text, " ")
	per, ok2 := strings.CutSuffix(per, "/s")
	if !ok || !ok2 {
		return Rate{}, bad
	}
	r := Rate{}
	var err, err2 error
	r.PerSecond, err = strconv.ParseFloat(per, 64)
	r.Burst, err2 = strconv.Atoi(strings.TrimSpace(burst))
	if err != nil || err2 != nil || !(r.PerSecond > 0) || r.PerSecond > 1e9 || r.Burst < 1 {
		return Rate{}, bad
	}
	return r, nil
}

// setDefaults fills what was left out.
func setDefaults(v reflect.Value) {
	for i := range v.NumField() {
		f, tag := v.Field(i), v.Type().Field(i).Tag.Get("default")
		switch {
		case f.Kind() == reflect.Struct && f.Type() != rateType:
			setDefaults(f)
		case f.Kind() == reflect.Map && f.Type().Elem().Kind() == reflect.Struct:
			for _, k := range f.MapKeys() {
				item := reflect.New(f.Type().Elem()).Elem()
				item.Set(f.MapIndex(k))
				setDefaults(item)
				f.SetMapIndex(k, item)
			}
		case tag != "" && f.IsZero():
			if why := setText(f, tag, limits{}); why != "" {
				panic("the default " + tag + " of " + v.Type().Field(i).Name + " " + why) // a defect that every test meets
			}
		}
	}
}

// nearest suggests a field for a misspelt name.
func nearest(name string, t reflect.Type) string {
	var all []string
	for i := range t.NumField() {
		all = append(all, t.Field(i).Tag.Get("yaml"))
	}
	return spelling.DidYouMean(name, slices.Values(all))
}
