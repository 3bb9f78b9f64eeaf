// Package picture draws the ways that internal/reach finds, as an SVG.
//
// Guaranteed: one file without references, scripts or anything of a name but text; of a bounded size; the same for the same ways. Not
// guaranteed: that nothing is left out; what is, is counted in the picture.
//
// It is pure and imports reach.
package picture

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/reach"
)

// What is beyond reach.PictureColumns and reach.PictureRows is counted.
const (
	boxWidth      = 210
	boxHeight     = 38
	columnGap     = 170
	rowGap        = 18
	pictureMargin = 24
	headHeight    = 44
	nameLength    = 27   // characters of a name in a box
	maxHops       = 2000 // that are looked at to put things in order
	hopLength     = 29   // characters of what is written on a line
)

// box is a thing in the picture.
type box struct {
	thing       reach.Thing
	column, row int
	x, y        int
}

type pictureLine struct {
	from, to   *box
	hops       []string // what is on it, each once
	rules      []string
	conditions []string
	grade      reach.Grade
	cut        bool
}

// Draw draws ways as an SVG: the first things on the left, each thing once, as far to the right as the longest chain of hops to it. Hops
// are more lines between them. Lines that a cut takes away are marked; cut may be nil. It is one file without references, for light and dark backgrounds, and is the same
// for the same ways. Names that are too long are cut short and stand in the title of their box.
func Draw(title string, ways [][]reach.Step, hops []reach.Step, cut *reach.Cut) []byte {
	boxes, lines, left := layout(ways, hops)
	mark(boxes, lines, cut)
	return render(title, boxes, lines, left)
}

// layout puts everything in its place.
func layout(ways [][]reach.Step, hops []reach.Step) (boxes []*box, lines []*pictureLine, left int) {
	column := columns(ways, hops)
	names := make([]reach.Thing, 0, len(column))
	for t := range column {
		names = append(names, t)
	}
	slices.SortFunc(names, func(a, b reach.Thing) int {
		return cmp.Or(cmp.Compare(column[a], column[b]), strings.Compare(a.Kind, b.Kind), strings.Compare(a.Name, b.Name))
	})
	at := map[reach.Thing]*box{}
	rows := [reach.PictureColumns]int{}
	for _, t := range names {
		c := column[t]
		if c >= reach.PictureColumns || rows[c] >= reach.PictureRows {
			left++
			continue
		}
		b := &box{thing: t, column: c, row: rows[c]}
		rows[c]++
		at[t] = b
		boxes = append(boxes, b)
	}
	lines = linesOf(append(slices.Clone(ways), hops), at)
	untangle(boxes, lines)
	most := slices.Max(rows[:])
	for _, b := range boxes {
		space := (most - rows[b.column]) * (boxHeight + rowGap) / 2
		b.x = pictureMargin + b.column*(boxWidth+columnGap)
		b.y = headHeight + pictureMargin + space + b.row*(boxHeight+rowGap)
	}
	return boxes, lines, left
}

// columns puts each thing as far to the right as the longest chain of hops to it, of those that make no circle with earlier ones.
func columns(ways [][]reach.Step, hops []reach.Step) map[reach.Thing]int {
	column, next := map[reach.Thing]int{}, map[reach.Thing][]reach.Thing{}
	var leads func(from, to reach.Thing, seen map[reach.Thing]bool) bool
	leads = func(from, to reach.Thing, seen map[reach.Thing]bool) bool {
		if from == to {
			return true
		}
		seen[from] = true
		return slices.ContainsFunc(next[from], func(t reach.Thing) bool { return !seen[t] && leads(t, to, seen) })
	}
	var push func(t reach.Thing, least int)
	push = func(t reach.Thing, least int) {
		if column[t] >= least {
			return
		}
		column[t] = least
		for _, n := range next[t] {
			push(n, least+1)
		}
	}
	edges := 0
	for _, way := range append(slices.Clone(ways), hops) {
		for _, s := range way {
			if slices.Contains(next[s.From], s.To) {
				continue
			}
			if edges++; edges > maxHops {
				return column
			}
			for _, t := range []reach.Thing{s.From, s.To} {
				if _, ok := column[t]; !ok {
					column[t] = 0
				}
			}
			if !leads(s.To, s.From, map[reach.Thing]bool{}) {
				next[s.From] = append(next[s.From], s.To)
				push(s.To, column[s.From]+1)
			}
		}
	}
	return column
}

// linesOf are the hops between boxes, those between the same two together.
func linesOf(ways [][]reach.Step, at map[reach.Thing]*box) []*pictureLine {
	var out []*pictureLine
	known := map[[2]reach.Thing]*pictureLine{}
	note := func(list *[]string, s string) {
		if !slices.Contains(*list, s) {
			*list = append(*list, s)
		}
	}
	for _, way := range ways {
		for _, s := range way {
			from, to := at[s.From], at[s.To]
			if from == nil || to == nil {
				continue
			}
			l, ok := known[[2]reach.Thing{s.From, s.To}]
			if !ok {
				l = &pictureLine{from: from, to: to, grade: reach.Poisoning}
				known[[2]reach.Thing{s.From, s.To}] = l
				out = append(out, l)
			}
			grade := reach.Plain
			switch {
			case s.Hop == reach.Poisons:
				grade = reach.Poisoning
			case len(s.Conditions) > 0:
				grade = reach.Conditional
			}
			l.grade = min(l.grade, grade)
			note(&l.hops, string(s.Hop))
			note(&l.rules, s.Rule)
			for _, c := range s.Conditions {
				note(&l.conditions, c)
			}
		}
	}
	return out
}

// untangle orders each column by where its lines come from, so that fewer cross.
func untangle(boxes []*box, lines []*pictureLine) {
	for range 4 {
		sum, count := map[*box]int{}, map[*box]int{}
		for _, l := range lines {
			if l.from.column < l.to.column {
				sum[l.to] += l.from.row * 1000
				count[l.to]++
			}
		}
		weight := func(b *box) int {
			if count[b] == 0 {
				return b.row * 1000
			}
			return sum[b] / count[b]
		}
		slices.SortStableFunc(boxes, func(a, b *box) int {
			return cmp.Or(cmp.Compare(a.column, b.column), cmp.Compare(weight(a), weight(b)))
		})
		row := map[int]int{}
		for _, b := range boxes {
			b.row = row[b.column]
			row[b.column]++
		}
	}
}

// mark finds the lines that a cut takes away.
func mark(boxes []*box, lines []*pictureLine, cut *reach.Cut) {
	if cut == nil {
		return
	}
	for _, t := range cut.Taken {
		for _, l := range lines {
			if t.Identity != nil {
				l.cut = l.cut || l.to.thing == *t.Identity || l.from.thing == *t.Identity
				continue
			}
			// Whose line it is, and what it is; where deny grants part one, all of it is marked.
			l.cut = l.cut || slices.Contains(l.rules, t.Rule) && slices.Contains(l.hops, string(t.Hop)) && covers(t.From, l.from.thing) && (covers(t.To, l.to.thing) || t.Hop == reach.Admits)
		}
	}
}

// covers reports whether a thing is what a line's pattern selects.
func covers(pattern string, t reach.Thing) bool {
	name := strings.TrimSuffix(t.Name, reach.AnyOther)
	prefix, subtree := strings.CutSuffix(pattern, "*")
	return name == pattern || subtree && strings.HasPrefix(name, prefix)
}

const pictureStyle = `<style>
.page{fill:#ffffff}.head{fill:#1f2328;font-weight:600;font-size:15px}.small{fill:#59636e;font-size:11px}.name{fill:#1f2328;font-size:12px}.kind{fill:#59636e;font-size:10px}
.node{fill:#ddf4ff;stroke:#0969da}.job{fill:#fff1e5;stroke:#bc4c00}.workload{fill:#dafbe1;stroke:#1a7f37}.person,.persons,.recovery{fill:#fbefff;stroke:#8250df}
.secret{fill:#fff8c5;stroke:#9a6700}.writable{fill:#ffffff;stroke:#9a6700;stroke-dasharray:4 3}.system{fill:#ffebe9;stroke:#cf222e}.bundle,.act{fill:#ffebe9;stroke:#cf222e;stroke-width:2}
.line{fill:none;stroke:#59636e;stroke-width:1.4}.conditional{stroke-dasharray:7 4}.poisoning{stroke-dasharray:2 4}.cut{stroke:#cf222e;stroke-width:3}.tip{fill:#59636e}.cuttip{fill:#cf222e}
.label{fill:#1f2328;font-size:10px;paint-order:stroke;stroke:#ffffff;stroke-width:3px}
@media (prefers-color-scheme:dark){.page{fill:#0d1117}.head,.name{fill:#e6edf3}.small,.kind{fill:#9198a1}
.node{fill:#121d2f;stroke:#4493f8}.job{fill:#221a19;stroke:#db6d28}.workload{fill:#12261e;stroke:#3fb950}.person,.persons,.recovery{fill:#211830;stroke:#ab7df8}
.secret{fill:#272115;stroke:#d29922}.writable{fill:#0d1117;stroke:#d29922}.system,.bundle,.act{fill:#25171c;stroke:#f85149}
.line{stroke:#9198a1}.cut{stroke:#f85149}.tip{fill:#9198a1}.cuttip{fill:#f85149}.label{fill:#e6edf3;stroke:#0d1117}}
</style>
`

// render writes the file.
func render(title string, boxes []*box, lines []*pictureLine, left int) []byte {
	width, height := 480, 160
	for _, b := range boxes {
		width, height = max(width, b.x+boxWidth+pictureMargin), max(height, b.y+boxHeight+pictureMargin)
	}
	height += 24
	var s strings.Builder
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="img" font-family="ui-sans-serif,system-ui,Helvetica,Arial,sans-serif">`+"\n", width, height, width, height)
	fmt.Fprintf(&s, "<title>%s</title>\n%s<defs>\n", escaped(title), pictureStyle)
	for _, tip := range []string{"tip", "cuttip"} {
		fmt.Fprintf(&s, `<marker id="%s" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="9" markerHeight="9" markerUnits="userSpaceOnUse" orient="auto"><path class="%s" d="M0 0L10 5L0 10z"/></marker>`+"\n", tip, tip)
	}
	fmt.Fprintf(&s, "</defs>\n<rect class=\"page\" width=\"%d\" height=\"%d\"/>\n<text class=\"head\" x=\"%d\" y=\"30\">%s</text>\n", width, height, pictureMargin, escaped(short(title, (width-2*pictureMargin)/9)))
	for _, l := range lines {
		l.render(&s)
	}
	for _, b := range boxes {
		b.render(&s)
	}
	labels(&s, lines)
	legend := "solid: plain   dashed: conditional   dotted: poisoning   red: in the cut"
	if left > 0 {
		legend = fmt.Sprintf("%d more are not shown   ", left) + legend
	}
	fmt.Fprintf(&s, "<text class=\"small\" x=\"%d\" y=\"%d\" xml:space=\"preserve\">%s</text>\n</svg>\n", pictureMargin, height-14, escaped(legend))
	return []byte(s.String())
}

func (b *box) render(s *strings.Builder) {
	class, _, _ := strings.Cut(b.thing.Kind, " ")
	fmt.Fprintf(s, "<g><title>%s</title><rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"6\"/>", escaped(b.thing.Kind+" "+b.thing.Name), class, b.x, b.y, boxWidth, boxHeight)
	fmt.Fprintf(s, "<text class=\"name\" x=\"%d\" y=\"%d\">%s</text><text class=\"kind\" x=\"%d\" y=\"%d\">%s</text></g>\n",
		b.x+9, b.y+17, escaped(short(b.thing.Name, nameLength)), b.x+9, b.y+31, escaped(b.thing.Kind))
}

// ends are where a line begins and ends, and how far it is bent.
func (l *pictureLine) ends() (x1, y1, x2, y2, bend int) {
	x1, y1, x2, y2 = l.from.x+boxWidth, l.from.y+boxHeight/2, l.to.x, l.to.y+boxHeight/2
	if l.from.column < l.to.column {
		return x1, y1, x2, y2, columnGap / 2
	}
	return x1, y1, l.to.x + boxWidth, y2, columnGap - 30 // around, on the right
}

func (l *pictureLine) render(s *strings.Builder) {
	x1, y1, x2, y2, bend := l.ends()
	back := -1
	if l.from.column >= l.to.column {
		back = 1
	}
	class, tip := "line", "tip"
	if l.grade == reach.Conditional || l.grade == reach.Poisoning {
		class += " " + l.grade.String()
	}
	if l.cut {
		class, tip = class+" cut", "cuttip"
	}
	about := strings.Join(l.hops, ", ") + " by " + strings.Join(l.rules, ", ")
	if len(l.conditions) > 0 {
		about += " (" + strings.Join(l.conditions, "; ") + ")"
	}
	fmt.Fprintf(s, "<path class=\"%s\" marker-end=\"url(#%s)\" d=\"M%d %dC%d %d %d %d %d %d\"><title>%s</title></path>\n", class, tip, x1, y1, x1+bend, y1, x2+back*bend, y2, x2, y2,
		escaped(l.from.thing.Name+" "+about+": "+l.to.thing.Name))
}

// labels writes the hops near the lines' ends, once for all that end at one place.
func labels(s *strings.Builder, lines []*pictureLine) {
	into := map[*box][]string{}
	for _, l := range lines {
		x1, y1, x2, y2, bend := l.ends()
		if l.from.column >= l.to.column {
			fmt.Fprintf(s, "<text class=\"label\" x=\"%d\" y=\"%d\">%s</text>\n", max(x1, x2)+bend*3/4+4, (y1+y2)/2, escaped(short(strings.Join(l.hops, ", "), hopLength)))
			continue
		}
		for _, h := range l.hops {
			if !slices.Contains(into[l.to], h) {
				into[l.to] = append(into[l.to], h)
			}
		}
	}
	for _, l := range lines {
		hops, ok := into[l.to]
		if !ok || l.from.column >= l.to.column {
			continue
		}
		delete(into, l.to)
		slices.Sort(hops)
		fmt.Fprintf(s, "<text class=\"label\" text-anchor=\"end\" x=\"%d\" y=\"%d\">%s</text>\n", l.to.x-12, l.to.y+boxHeight/2-5, escaped(short(strings.Join(hops, ", "), hopLength)))
	}
}

// short keeps the end of a name: that is where names differ.
func short(name string, most int) string {
	r := []rune(name)
	if len(r) <= most {
		return name
	}
	keep := most - 1
	return string(r[:keep/3]) + "…" + string(r[len(r)-(keep-keep/3):])
}

// escaped is text for XML, without what it can't hold.
func escaped(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '&':
			b.WriteString("&amp;")
		case r == '<':
			b.WriteString("&lt;")
		case r == '>':
			b.WriteString("&gt;")
		case r == '"':
			b.WriteString("&quot;")
		case r == '\'':
			b.WriteString("&#39;")
		case r == '\n' || r == '\t':
			b.WriteByte(' ')
		case r < 0x20 || r == 0x7f || r == 0xfffe || r == 0xffff:
			b.WriteRune('\uFFFD')
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
