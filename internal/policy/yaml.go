package policy

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// The subset of YAML that a bundle is written in: mappings with plain keys, sequences, and scalars.
// Anchors, aliases, merge keys, tags, directives and explicit keys are refused, because they let a
// text mean something else than what its reader sees, and because they are what YAML bombs are
// made of. The limits keep the parser's recursion and its quadratic parts small: what it will have to
// do is foreseen (parseWork), and has a budget for the whole bundle.
const (
	maxFlowDepth   = 8
	maxBlockColumn = 80
	maxDocuments   = 2_000         // of a file
	maxParseWork   = 1_000_000_000 // of a bundle, about half a second
)

// node is a parsed value with its place.
type node struct {
	kind    nodeKind
	text    string // of a scalar, unquoted
	style   byte   // of a scalar: 0 plain, '"', '\'', '|' or '>'
	at      Pos
	entries []entry // of a mapping, in the order of the file
	items   []*node // of a sequence
}

type entry struct {
	key   string
	at    Pos
	value *node
}

type nodeKind uint8

const (
	kindNull nodeKind = iota
	kindText
	kindNumber
	kindOther // booleans, floats: well formed, but nothing here takes them
	kindMap
	kindList
)

func (k nodeKind) String() string {
	return [...]string{"empty", "text", "a number", "not text", "a mapping", "a list"}[k]
}

// yamlReader parses the files of one bundle under one budget.
type yamlReader struct {
	found *collector
	work  int64
	spent bool // the budget is used up: nothing more is read
}

// documents parses one file. What is wrong with it goes to the collector; nil is returned for a
// file that can't be used at all.
func (r *yamlReader) documents(file string, data []byte) []*node {
	if r.spent {
		return nil
	}
	if len(data) > MaxFileBytes {
		r.found.add(Pos{File: file}, "is larger than %d KiB: split it", MaxFileBytes>>10)
		return nil
	}
	text, ok := r.clean(file, data)
	if !ok {
		return nil
	}
	tokens := lexer.Tokenize(text)
	if !r.acceptable(file, tokens) {
		return nil
	}
	parsed, err := parse(tokens)
	if err != nil {
		r.found.add(syntaxPos(file, err))
		return nil
	}
	var docs []*node
	for _, doc := range parsed.Docs {
		if doc.Body == nil {
			continue
		}
		if _, empty := doc.Body.(*ast.NullNode); empty {
			continue
		}
		docs = append(docs, r.convert(file, doc.Body))
	}
	return docs
}

// clean accepts Windows line ends and a byte order mark, and nothing else that can't be seen.
func (r *yamlReader) clean(file string, data []byte) (string, bool) {
	data = bytes.TrimPrefix(data, []byte("\uFEFF"))
	data = bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n"))
	line, start := 1, 0
	for i := 0; i < len(data); {
		c, size := utf8.DecodeRune(data[i:])
		if c == '\n' {
			line, start = line+1, i+1
		} else if !printable(c) || c == utf8.RuneError {
			what := fmt.Sprintf("the character %U, which can't be seen", c)
			switch {
			case c == utf8.RuneError:
				what = "bytes that are not UTF-8"
			case c == '\t':
				what = "a tab: use spaces"
			}
			r.found.add(Pos{file, line, utf8.RuneCount(data[start:i]) + 1}, "has %s", what)
			return "", false
		}
		i += size
	}
	return string(data), true
}

func (r *yamlReader) acceptable(file string, tokens token.Tokens) bool {
	flow, line, headers, work := 0, 0, 0, newParseWork()
	refuse := func(t *token.Token, format string, args ...any) bool {
		r.found.add(tokenPos(file, t), format, args...)
		return false
	}
	tooLong := false
	finish := func() {
		cost, long := work.done()
		r.work += cost
		tooLong = tooLong || long
		work = newParseWork()
	}
	for _, t := range tokens {
		switch t.Type {
		case token.AnchorType, token.AliasType, token.MergeKeyType:
			return refuse(t, "anchors, aliases and merge keys are not allowed")
		case token.TagType:
			return refuse(t, "tags are not allowed")
		case token.DirectiveType:
			return refuse(t, "directives are not allowed")
		case token.MappingKeyType:
			return refuse(t, "explicit keys ('?') are not allowed")
		case token.DocumentHeaderType:
			if headers++; headers > maxDocuments {
				return refuse(t, "more than %d documents in a file: split it", maxDocuments)
			}
			finish()
		case token.MappingStartType, token.SequenceStartType:
			if flow++; flow > maxFlowDepth {
				return refuse(t, "nested deeper than %d", maxFlowDepth)
			}
		case token.MappingEndType, token.SequenceEndType:
			flow = max(flow-1, 0) // a stray end must not make room
		}
		first := t.Position.Line != line
		line = t.Position.Line
		// The text of a block scalar at the end of a file stands where it ends, however little it is indented.
		inBlock := t.Prev != nil && (t.Prev.Type == token.LiteralType || t.Prev.Type == token.FoldedType)
		if flow <= 0 && (first || t.Type == token.SequenceEntryType) && t.Type != token.CommentType && !inBlock && t.Position.Column > maxBlockColumn {
			return refuse(t, "indented deeper than %d columns", maxBlockColumn)
		}
		work.token(t)
	}
	finish()
	r.work += workPerPair * int64(headers*headers)
	if tooLong {
		r.found.add(Pos{File: file}, "has keys that are too long for so many of them")
		return false
	}
	if r.work > maxParseWork {
		r.spent = true
		r.found.add(Pos{File: file}, "the bundle is too complex to read: its documents are too long, split them")
		return false
	}
	return true
}

// parse turns a panic of the library into an error: a file must not be able to stop the server.
func parse(tokens token.Tokens) (f *ast.File, err error) {
	defer func() {
		if v := recover(); v != nil {
			f, err = nil, errors.New("not understood by the YAML parser")
		}
	}()
	// Duplicate keys are found in convert, where all of them are.
	return parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
}

func syntaxPos(file string, err error) (Pos, string, any) {
	at := Pos{File: file}
	var located yaml.Error
	if !errors.As(err, &located) {
		return at, "is not valid YAML: %s", err.Error()
	}
	if t := located.GetToken(); t != nil {
		at = tokenPos(file, t)
	}
	// Not the text of Error: it shows the source around, which takes long to print if that is one line.
	return at, "is not valid YAML: %s", located.GetMessage()
}

func tokenPos(file string, t *token.Token) Pos {
	if t == nil || t.Position == nil {
		return Pos{File: file}
	}
	return Pos{file, t.Position.Line, max(t.Position.Column, 1)}
}

func (r *yamlReader) convert(file string, n ast.Node) *node {
	out := &node{at: tokenPos(file, n.GetToken())}
	switch n := n.(type) {
	case *ast.MappingNode:
		r.convertMap(file, out, n.Values)
	case *ast.MappingValueNode:
		r.convertMap(file, out, []*ast.MappingValueNode{n})
	case *ast.SequenceNode:
		out.kind = kindList
		for _, item := range n.Values {
			if item == nil {
				r.found.add(out.at, "has an empty item")
				continue
			}
			out.items = append(out.items, r.convert(file, item))
		}
	case *ast.StringNode:
		out.kind, out.text = kindText, n.Value
		switch n.GetToken().Type {
		case token.DoubleQuoteType:
			out.style = '"'
		case token.SingleQuoteType:
			out.style = '\''
		}
	case *ast.LiteralNode:
		out.kind, out.text, out.style = kindText, n.Value.Value, '|'
		if strings.HasPrefix(n.GetToken().Value, ">") {
			out.style = '>'
		}
	case *ast.IntegerNode:
		out.kind, out.text = kindNumber, n.GetToken().Value
	case *ast.NullNode:
	case *ast.BoolNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		out.kind, out.text = kindOther, n.GetToken().Value
	default:
		r.found.add(out.at, "this form of YAML (%s) is not allowed", n.Type())
	}
	return out
}

func (r *yamlReader) convertMap(file string, out *node, values []*ast.MappingValueNode) {
	out.kind = kindMap
	seen := make(map[string]Pos, len(values))
	for i, v := range values {
		at := tokenPos(file, v.Key.GetToken())
		if i == 0 {
			// The library places a mapping at its first colon, which is not where a reader looks.
			out.at = at
		}
		key, ok := v.Key.(*ast.StringNode)
		if !ok {
			r.found.add(at, "a key must be text")
			continue
		}
		if first, twice := seen[key.Value]; twice {
			r.found.add(at, "the key %q is here twice: first in line %d", key.Value, first.Line)
			continue
		}
		seen[key.Value] = at
		value := &node{at: at}
		if v.Value != nil {
			value = r.convert(file, v.Value)
		}
		out.entries = append(out.entries, entry{key.Value, at, value})
	}
}
