package policy

import (
	"github.com/goccy/go-yaml/token"
)

// What reading costs, in units of which the budget of a bundle (maxParseWork) is about half a second.
const (
	workPerToken = 2_000    // at most, of a long document; a short one counts the square of its tokens, which is less
	workPerPair  = 8        // of keys of one mapping; or of documents of one file
	pathPart     = 12       // of each level of a path, beside the key
	maxPathBytes = 64 << 20 // of the paths that the parser keeps for one document
)

// parseWork foresees what the parser's work on one document is before it begins. That is linear but for three parts, each of which it
// counts from what the parser looks at, never less than the parser does:
//
//   - the parser reads the rest of a block mapping by recursion for each of its keys, and copies what it has got: the square of the keys
//     of a mapping. A mapping goes on as long as keys stand in its column; inside of brackets, as long as there is no comma;
//   - where a value is missing, it inserts an empty one into the list of all tokens, and moves the rest;
//   - it keeps for each key and item its whole path as text: long keys count for everything below them.
type parseWork struct {
	tokens, keys, missing, pairs int64 // keys: and items; missing: values; pairs: of keys of one mapping

	block   []blockRun              // mappings that are open, by column
	longest map[int]int64           // key by column, in all of the document
	flow    []flowRun               // brackets that are open
	deepest [maxFlowDepth + 1]int64 // bytes of keys without a comma between, by depth

	before, last *token.Token // that are no comments
	awaiting     *token.Token // a key or '-' whose value has not come
}

type blockRun struct {
	column int
	keys   int64
}

// flowRun is what an open bracket has since its last comma.
type flowRun struct {
	mapping     bool
	keys, bytes int64
}

func newParseWork() *parseWork {
	return &parseWork{longest: map[int]int64{}}
}

// token counts the next token of the document.
func (w *parseWork) token(t *token.Token) {
	w.tokens++
	if t.Type == token.CommentType {
		return
	}
	if w.awaiting != nil && t.Position.Column <= w.awaiting.Position.Column {
		w.missing++
	}
	w.awaiting = nil
	switch t.Type {
	case token.MappingStartType, token.SequenceStartType:
		w.flow = append(w.flow, flowRun{mapping: t.Type == token.MappingStartType})
	case token.CollectEntryType, token.MappingEndType, token.SequenceEndType:
		w.entryEnds(t)
	case token.SequenceEntryType:
		w.keys++
		w.closeBeyond(t.Position.Column)
		w.awaiting = t
	case token.MappingValueType:
		if w.last != nil {
			w.key(w.last)
			w.awaiting = w.last
		}
	}
	w.before, w.last = w.last, t
}

func (w *parseWork) key(t *token.Token) {
	w.keys++
	size := int64(len(t.Value)) + pathPart
	if n := len(w.flow); n > 0 {
		f := &w.flow[n-1]
		f.keys++
		f.bytes += size
		depth := min(n, maxFlowDepth)
		w.deepest[depth] = max(w.deepest[depth], f.bytes)
		return
	}
	column := t.Position.Column
	w.closeBeyond(column)
	if n := len(w.block); n == 0 || w.block[n-1].column < column {
		w.block = append(w.block, blockRun{column: column})
	}
	w.block[len(w.block)-1].keys++
	w.longest[column] = max(w.longest[column], size)
}

// closeBeyond ends the mappings that are further to the right than a key or item.
func (w *parseWork) closeBeyond(column int) {
	if len(w.flow) > 0 {
		return
	}
	n := len(w.block)
	for ; n > 0 && w.block[n-1].column > column; n-- {
		w.pairs += w.block[n-1].keys * w.block[n-1].keys
	}
	w.block = w.block[:n]
}

// entryEnds counts what a comma or the end of a list or mapping in brackets ends.
func (w *parseWork) entryEnds(t *token.Token) {
	n := len(w.flow)
	if n == 0 {
		return
	}
	f := &w.flow[n-1]
	if w.last.Type == token.MappingValueType || f.mapping && single(w.last) && (w.before == nil || w.before.Type != token.MappingValueType) {
		w.missing++
	}
	w.keys++
	w.pairs += f.keys * f.keys
	f.keys, f.bytes = 0, 0
	if t.Type != token.CollectEntryType {
		w.flow = w.flow[:n-1]
	}
}

func single(t *token.Token) bool {
	switch t.Type {
	case token.MappingStartType, token.MappingEndType, token.SequenceStartType, token.SequenceEndType, token.CollectEntryType:
		return false
	}
	return true
}

// done is what the document costs, and whether its paths alone are too much.
func (w *parseWork) done() (work int64, tooLong bool) {
	w.closeBeyond(0)
	for _, b := range w.block { // that an open bracket keeps open
		w.pairs += b.keys * b.keys
	}
	path := int64(pathPart)
	for _, size := range w.longest {
		path += size
	}
	for depth, size := range w.deepest {
		path += size
		if depth < len(w.flow) {
			w.pairs += w.flow[depth].keys * w.flow[depth].keys
		}
	}
	paths := 2 * path * w.keys // one of the key, and one of the value
	return min(w.tokens*w.tokens, workPerToken*w.tokens) + workPerPair*w.pairs + w.missing*w.tokens + paths, paths > maxPathBytes
}
