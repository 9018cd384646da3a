package report

import (
	"fmt"
	"time"

	g "maragu.dev/gomponents"
	h "maragu.dev/gomponents/html"
)

// This is the page from its top to its bottom, a function for each section.

func (p *page) document() g.Node {
	return h.Doctype(h.HTML(h.Lang("en"),
		p.head(),
		h.Body(
			h.Header(
				h.H1(g.Text("TCP postmortem")),
				h.P(h.Class("headline"), g.Text(p.Headline())),
				p.facts(),
				p.warnings(),
				p.notShown(),
				p.contents(),
			),
			h.Main(
				p.incidents(),
				p.timeline(),
				p.outcomes(),
				g.Map(p.tables(), p.table),
				p.ports(),
				p.latency(),
				p.gaps(),
				p.drops(),
				p.runs(),
				p.damaged(),
				p.unknown(),
				p.connection(),
			),
			h.Footer(
				h.P(h.Class("note"), g.Textf("Times are UTC. Made by twtrace from its event log, %s.", p.Schema)),
			),
		),
	))
}

func (p *page) head() g.Node {
	title := "TCP postmortem"
	if nodes := p.nodes(); nodes != "" {
		title += ": " + nodes
	}
	if !p.Window.From.IsZero() {
		title += ", " + p.days()
	}
	return h.Head(
		h.Meta(h.Charset("utf-8")),
		h.Meta(h.Name("viewport"), h.Content("width=device-width, initial-scale=1")),
		h.Meta(h.Name("color-scheme"), h.Content("light dark")),
		h.Meta(g.Attr("http-equiv", "Content-Security-Policy"), h.Content("default-src 'none'; style-src 'unsafe-inline'")),
		h.TitleEl(g.Text(title)),
		h.StyleEl(g.Raw(styleSheet)),
	)
}

func (p *page) facts() g.Node {
	moment := func(t time.Time) g.Node {
		return h.Time(h.DateTime(t.UTC().Format("2006-01-02T15:04:05.000Z")), g.Text(p.at(t)))
	}
	return h.Dl(h.Class("facts"),
		g.If(!p.Window.From.IsZero(), fact("Window",
			g.Text(p.days()+", "), moment(p.Window.From), g.Text(" to "), moment(p.Window.To), g.Text(" UTC, "+p.lasted()),
		)),
		g.If(p.nodes() != "", fact("Node", isolated(p.nodes()))),
		g.If(p.kernels() != "", fact("Kernel", isolated(p.kernels()))),
		fact("Log",
			g.Text(plural(p.Lines, "line")),
			g.If(p.RepeatedLines > 0, g.Textf("; %s more stood in another file already, and count once", number(p.RepeatedLines))),
		),
		g.If(len(p.Filters) > 0, fact("Narrowed by", separated(g.Text(", "), g.Map(p.Filters, code)))),
	)
}

func (p *page) warnings() g.Node {
	lost, unknown := p.lostLines(), len(p.UnknownKinds)+len(p.UnknownKeys) > 0
	if !p.Truncated && p.DamagedLines+p.MissingLines == 0 && lost == "" && !unknown {
		return nil
	}
	are := "are"
	if p.MissingLines == 1 {
		are = "is"
	}
	return section("warning", "Before you rely on this", h.Class("warning"), h.Ul(
		g.If(p.Truncated, h.Li(
			h.Strong(g.Text("The log is truncated")),
			g.Text(": a run has no end, or a file stops within a line. More may have happened than is told here."),
		)),
		g.If(p.DamagedLines > 0, h.Li(
			h.Strong(g.Textf("%s could not be read", plural(p.DamagedLines, "line"))),
			g.If(len(p.Damaged) > 0, g.Group{g.Text(": see "), h.A(h.Href("#damaged"), g.Text("damaged lines"))}),
			g.Text("."),
		)),
		g.If(p.MissingLines > 0, h.Li(
			h.Strong(g.Textf("%s %s missing", plural(p.MissingLines, "line"), are)),
			g.Text(": they were made, and did not reach this log."),
		)),
		g.If(lost != "", h.Li(h.Strong(g.Text("Lost")), g.Textf(": %s.", lost))),
		g.If(unknown, h.Li(
			g.Text("A newer twtrace wrote what this one does not understand: see "),
			h.A(h.Href("#unknown"), g.Text("unknown kinds and keys")),
			g.Text("."),
		)),
	))
}

func (p *page) notShown() g.Node {
	if len(p.NotShown) == 0 {
		return nil
	}
	return section("not-shown", "What this log can't show", h.Class("warning"), items(p.NotShown))
}

func (p *page) contents() g.Node {
	link := func(id, title string) g.Node {
		return h.Li(h.A(h.Href("#"+id), g.Text(title)))
	}
	return h.Nav(h.Aria("label", "Contents"), h.Ul(
		link("incidents", "Incidents"),
		g.If(p.drawn.timeline != nil, link("timeline", "Timeline")),
		g.If(len(p.Connects) > 0, link("outcomes", "Outcomes")),
		g.Map(p.tables(), func(t namedTable) g.Node { return link(t.id, t.title) }),
		g.If(len(p.PortUse) > 0, link("ports", "TIME_WAIT and ports")),
		g.If(p.drawn.latency != nil, link("latency", "Latency")),
		g.If(p.drawn.gaps != nil, link("gaps", "Reuses")),
		g.If(len(p.Drops) > 0, link("drops", "Drops")),
		g.If(len(p.Runs) > 0, link("runs", "Runs")),
		g.If(p.Connection != nil, link("connection", "One connection")),
	))
}

func (p *page) incidents() g.Node {
	var articles g.Group
	for i := range p.Incidents {
		articles = append(articles, p.incident(i+1, &p.Incidents[i]))
	}
	were := "were"
	if p.MoreIncidents == 1 {
		were = "was"
	}
	return section("incidents", "Incidents",
		g.If(len(p.Incidents) == 0, h.P(g.Text("None: no connect failed or was late with a cause that the log tells."))),
		g.If(len(p.Incidents) > 3, p.overview()),
		articles,
		g.If(p.MoreIncidents > 0, h.P(g.Textf("%s %s not kept.", plural(p.MoreIncidents, "further incident"), were))),
		g.If(p.Unexplained > 0, h.P(g.Textf("%s failed without a verdict.", plural(p.Unexplained, "connect")))),
	)
}

// overview is of incidents that are too many to be seen at once.
func (p *page) overview() g.Node {
	var rows g.Group
	for i, in := range p.Incidents {
		rows = append(rows, h.Tr(
			cell("n", fmt.Sprint(i+1)),
			h.Th(h.Scope("row"), h.A(h.Href(fmt.Sprint("#incident-", i+1)), code(in.Cause))),
			cell("", in.Confidence),
			cell("name", in.Peer),
			cell("n", number(in.Count)),
			cell("", p.at(in.From)),
			cell("", p.at(in.To)),
		))
	}
	return scroll(h.Aria("label", "All incidents"), h.Table(h.Class("full"),
		h.Caption(g.Text("All of them, the gravest first")),
		columns(
			column("n", "No."), column("", "Cause"), column("", "Confidence"), column("name", "Destination"),
			column("n", "Times"), column("", "From"), column("", "To"),
		),
		h.TBody(rows),
	))
}

func (p *page) incident(n int, in *Incident) g.Node {
	id := fmt.Sprint("incident-", n)
	when := "at " + p.at(in.From)
	if !in.From.Equal(in.To) {
		when = "from " + p.at(in.From) + " to " + p.at(in.To)
	}
	counted := func(name string, shares []Share) g.Node {
		return g.If(len(shares) > 0, fact(name, eachShare(shares)))
	}
	return h.Article(h.Class("incident"), h.Aria("labelledby", id),
		h.H3(h.ID(id),
			g.Textf("%d. ", n), code(in.Cause), isolated(in.Where()), g.Text(" "), h.Span(h.Class("confidence"), g.Text(in.Confidence)),
		),
		h.P(h.Class("said"), g.Text(in.Text)),
		g.If(in.Advice != "", h.P(h.Class("advice"), h.Strong(g.Text("What to do:")), g.Text(" "+in.Advice))),
		h.Dl(h.Class("facts"),
			fact("Came", g.Textf("%s, %s", plural(in.Count, "time"), when)),
			counted("Connects", sorted(in.Outcomes)),
			counted("Told as", sorted(in.Wrappers)),
			counted("Processes", in.Processes),
			counted("Containers", in.Containers),
			counted("Network namespaces", in.NetNS),
		),
		g.If(len(in.Evidence) > 0, g.Group{
			h.H4(g.Text("Evidence")),
			h.Ul(g.Map(in.Evidence, func(e Evidence) g.Node {
				if e.Seq == nil {
					return h.Li(g.Text(e.Text))
				}
				return h.Li(g.Text(e.Text+" "), note(fmt.Sprintf("(line %d)", *e.Seq)))
			})),
		}),
		logged(logLines(*in)),
		g.If(len(in.RuledOut) > 0, g.Group{h.H4(g.Text("Ruled out")), items(in.RuledOut)}),
		g.If(len(in.NotVisible) > 0, g.Group{h.H4(g.Text("Not visible here")), items(in.NotVisible)}),
	)
}

func (p *page) timeline() g.Node {
	if p.drawn.timeline == nil {
		return nil
	}
	return section("timeline", "Timeline", h.Figure(
		p.drawn.timeline,
		h.FigCaption(g.Textf("Connects in slices of %s, UTC. Late: established after a SYN was sent again.", p.slice())),
	))
}

func (p *page) outcomes() g.Node {
	if len(p.Connects) == 0 {
		return nil
	}
	total := sum(p.Connects)
	return section("outcomes", "Connects by outcome", scroll(h.Aria("labelledby", "outcomes"), h.Table(h.Class("full"),
		h.Caption(g.Text(plural(total, "connect"))),
		columns(
			column("", "Outcome"), column("n", "Connects"),
			h.Th(h.Scope("colgroup"), h.ColSpan("2"), h.Class("share"), g.Text("Share")),
			column("words", "Meaning"),
		),
		h.TBody(g.Map(sorted(p.Connects), func(s Share) g.Node {
			return h.Tr(
				h.Th(h.Scope("row"), code(s.Name)),
				cell("n", number(s.Count)),
				cell("n", per(s.Count, total)),
				h.Td(h.Class("bar"), h.Span(
					g.If(s.Name == "established", h.Class("good")),
					h.Style(fmt.Sprintf("width: %v%%", float64(s.Count)/float64(total)*100)),
				)),
				cell("words", meanings[s.Name]),
			)
		})),
	)))
}

// table is one of those that are alike.
func (p *page) table(t namedTable) g.Node {
	timed := ""
	if t.timed {
		timed = " p50 and p99: how long it took to connect."
	}
	return section(t.id, t.title,
		scroll(h.Aria("labelledby", t.id), h.Table(h.Class("full"),
			h.Caption(g.Textf("The most failures first, then the most connects; under each its %s.%s Lasted: its TIME_WAITs, on average.", t.with, timed)),
			columns(
				column("name", t.of),
				column("n", "Connects"), column("n", "Failed"), column("few", "Failed by"), column("n", "Late"), column("n", "Accepts"),
				g.If(t.timed, g.Group{column("n", "p50"), column("n", "p99")}),
				column("n", "Reuses"), column("n", "Drops"),
				column("n", "TIME_WAITs"), column("n", "lasted"), column("n", "longest"),
			),
			h.TBody(g.Map(t.rows, func(r Row) g.Node { return tableRow(&r, t.timed) })),
		)),
		g.If(t.gone > 0, h.P(h.Class("note"), g.Textf(
			"%s more had no room, and stand together in the last row; what came again may be counted there in part.", number(t.gone),
		))),
	)
}

func tableRow(r *Row, timed bool) g.Node {
	orDash := func(value float64) string {
		if value == 0 {
			return "-"
		}
		return ms(value)
	}
	p50, p99 := "-", "-"
	if r.Latency != nil {
		p50, p99 = ms(r.Latency.P50), ms(r.Latency.P99)
	}
	return h.Tr(
		h.Th(h.Scope("row"), h.Class("name"),
			isolated(r.Name),
			g.If(r.Accepted, g.Group{g.Text(" "), note("accepted here")}),
			g.If(len(r.With) > 0, g.Group{g.Text(" "), h.Span(h.Class("note with"), eachShare(r.With))}),
		),
		cell("n", number(r.Connects)),
		h.Td(h.Class("n"),
			g.Text(number(r.Failed)),
			g.If(r.Failed > 0, g.Group{g.Text(" "), note(per(r.Failed, r.Connects))}),
		),
		h.Td(h.Class("few"), eachShare(failures(r.Outcomes))),
		cell("n", number(r.Late)),
		cell("n", number(r.Accepts)),
		g.If(timed, g.Group{cell("n", p50), cell("n", p99)}),
		cell("n", number(r.Reuses)),
		cell("n", number(r.Drops)),
		cell("n", number(r.TimeWait.Entered)),
		cell("n", orDash(r.TimeWait.Mean)),
		cell("n", orDash(r.TimeWait.Max)),
	)
}

func (p *page) ports() g.Node {
	if len(p.PortUse) == 0 && p.TimeWait.Entered == 0 && len(p.TimeWait.Ended) == 0 {
		return nil
	}
	var uses g.Group
	for i, drawn := range p.drawn.ports {
		uses = append(uses, p.portUse(&p.PortUse[i], drawn))
	}
	more, are := uint64(len(p.PortUse)-len(p.drawn.ports)), "are"
	if more == 1 {
		are = "is"
	}
	return section("ports", "TIME_WAIT and local ports",
		uses,
		g.If(more > 0, h.P(h.Class("note"), g.Textf("%s used fewer ports, and %s not drawn.", plural(more, "further destination"), are))),
		p.timeWaits(),
	)
}

func (p *page) portUse(u *PortUse, drawn g.Node) g.Node {
	return g.Group{
		h.H3(
			g.If(u.Local != "", g.Group{isolated(u.Local), g.Text(" ")}),
			g.Text("to "), isolated(u.Peer),
		),
		h.P(
			g.Text(u.sentence()),
			g.If(u.NetNS != 0, g.Group{g.Text(" "), note(fmt.Sprintf("Network namespace %d.", u.NetNS))}),
			g.If(u.Usable > 0 && !u.near(), g.Text(" The line of what is usable would be far above the picture.")),
		),
		g.If(drawn != nil, h.Figure(
			drawn,
			h.FigCaption(g.Textf("The most in each slice of %s, UTC.", p.slice())),
		)),
		g.If(len(u.Pressure) > 0, h.Details(
			h.Summary(g.Textf("Crossings of pressure: %d", len(u.Pressure))),
			scroll(h.Aria("label", "Crossings"), h.Table(
				h.Caption(g.Text("Where the use of the ports rose past 50, 80, 95 or 100 %, or fell under 50 %")),
				columns(column("", "Time"), column("n", "In use"), column("n", "TIME_WAIT"), column("n", "Of all")),
				h.TBody(g.Map(u.Pressure, func(at Pressure) g.Node {
					return h.Tr(
						h.Th(h.Scope("row"), g.Text(p.at(at.Time))),
						cell("n", number(at.InUse)), cell("n", number(at.TimeWait)), cell("n", percent(at.Ratio)),
					)
				})),
			)),
		)),
	}
}

func (p *page) timeWaits() g.Node {
	caption := number(p.TimeWait.Entered) + " entered"
	if d := p.TimeWait.Duration; d.Count > 0 {
		caption += fmt.Sprintf("; of %s both ends were seen: half lasted up to %s, the shortest %s, the longest %s",
			number(d.Count), ms(d.P50), ms(d.Min), ms(d.Max))
	}
	return g.Group{
		h.H3(h.ID("ends"), g.Text("How TIME_WAITs ended")),
		scroll(h.Aria("labelledby", "ends"), h.Table(
			h.Caption(g.Text(caption)),
			columns(column("", "Ended"), column("n", "TIME_WAITs"), column("words", "Meaning")),
			h.TBody(
				g.Map(sorted(p.TimeWait.Ended), func(s Share) g.Node {
					meaning := meanings[s.Name]
					if s.Name == "reset" {
						meaning = "a RST arrived"
					}
					return h.Tr(h.Th(h.Scope("row"), code(s.Name)), cell("n", number(s.Count)), cell("words", meaning))
				}),
				g.If(len(p.TimeWait.Ended) == 0, h.Tr(h.Td(h.ColSpan("3"), g.Text("None ended within this log.")))),
			),
		)),
	}
}

func (p *page) latency() g.Node {
	if p.drawn.latency == nil {
		return nil
	}
	row := func(outcome string, d Distribution) g.Node {
		return g.If(d.Count > 0, h.Tr(
			h.Th(h.Scope("row"), g.Text(outcome)),
			cell("n", number(d.Count)), cell("n", ms(d.Min)),
			cell("n", ms(d.P50)), cell("n", ms(d.P90)), cell("n", ms(d.P99)), cell("n", ms(d.P999)),
			cell("n", ms(d.Max)),
		))
	}
	return section("latency", "Latency",
		scroll(h.Aria("labelledby", "latency"), h.Table(
			h.Caption(g.Text("How long connects took")),
			columns(
				column("", "Outcome"), column("n", "Connects"), column("n", "min"),
				column("n", "p50"), column("n", "p90"), column("n", "p99"), column("n", "p99.9"),
				column("n", "max"),
			),
			h.TBody(
				row("established", p.Latency.Established),
				row("failed", p.Latency.Failed),
			),
		)),
		h.Figure(
			p.drawn.latency,
			h.FigCaption(g.Text("Connects by how long they took. Both axes are logarithmic, so that the few slow ones show.")),
		),
	)
}

func (p *page) gaps() g.Node {
	if p.drawn.gaps == nil {
		return nil
	}
	return section("gaps", "Ports used again",
		h.P(g.Text("The time from the end of one use of ports to the next. "+
			"A NAT gateway keeps a port from the same destination for 65 s after a FIN, 16 s after a RST and 30 s after a connection that was half open; "+
			"Linux keeps a TIME_WAIT for 60 s. What comes sooner may meet what is left of the earlier use.")),
		h.Figure(
			p.drawn.gaps,
			h.FigCaption(g.Textf("%s Both axes are logarithmic.", sentence("Reuses", p.Gaps))),
		),
		g.If(len(p.Reuses) > 0, scroll(h.Aria("label", "Reuses by how"), h.Table(
			h.Caption(g.Text("Reuses by how the ports came free")),
			columns(column("", "How"), column("n", "Reuses"), column("words", "Meaning")),
			h.TBody(g.Map(sorted(p.Reuses), func(s Share) g.Node {
				return h.Tr(h.Th(h.Scope("row"), code(s.Name)), cell("n", number(s.Count)), cell("words", meanings[s.Name]))
			})),
		))),
		g.If(len(p.ShortestReuses) > 0, scroll(h.Aria("label", "The shortest reuses"), h.Table(
			h.Caption(g.Text("The shortest")),
			columns(
				column("n", "After"), column("", "Time"), column("", "Scope"), column("", "How"),
				column("name", "Local"), column("name", "Peer"), column("words", "Used by"), column("words", "Before by"),
			),
			h.TBody(g.Map(p.ShortestReuses, func(r Reuse) g.Node {
				return h.Tr(
					h.Th(h.Scope("row"), h.Class("n"), g.Text(ms(r.After))),
					cell("", p.at(r.Time)), cell("", r.Scope), h.Td(code(r.How)),
					cell("name", r.Local), cell("name", r.Peer), cell("words", r.Owner), cell("words", r.Previous),
				)
			})),
		))),
	)
}

func (p *page) drops() g.Node {
	if len(p.Drops) == 0 {
		return nil
	}
	return section("drops", "Drops", scroll(h.Aria("labelledby", "drops"), h.Table(
		h.Caption(g.Text("Packets of handshakes that the kernel threw away")),
		columns(column("name", "Reason"), column("n", "Packets")),
		h.TBody(g.Map(sorted(p.Drops), func(s Share) g.Node {
			return h.Tr(h.Th(h.Scope("row"), h.Class("name"), code(s.Name)), cell("n", number(s.Count)))
		})),
	)))
}

func (p *page) runs() g.Node {
	if len(p.Runs) == 0 {
		return nil
	}
	return section("runs", "Runs", g.Map(p.Runs, oneRun))
}

func oneRun(r Run) g.Node {
	name := g.Text("A run")
	if r.Node != "" {
		name = isolated(r.Node)
	}
	kernel := "not known"
	if r.Kernel != "" {
		kernel = "Linux " + r.Kernel
	}
	complete := g.Text("yes")
	if !r.Complete {
		complete = g.Group{h.Strong(g.Text("no")), g.Text(": its summary is missing")}
	}
	return g.Group{
		h.H3(name, g.If(!r.Started.IsZero(), g.Textf(", started %s UTC", r.Started.UTC().Format("2 January 2006, 15:04:05")))),
		h.Dl(h.Class("facts"),
			fact("Kernel", g.Text(kernel+" "+r.Arch)),
			g.If(r.Version != "", fact("twtrace", g.Text(r.Version))),
			fact("Complete", complete),
			fact("Filters", orNone(separated(g.Text(", "), g.Map(r.Filters, code)))),
			fact("Blind spots", orNone(separated(h.Br(), g.Map(r.BlindSpots, g.Text)))),
		),
	}
}

func (p *page) damaged() g.Node {
	if len(p.Damaged) == 0 {
		return nil
	}
	return section("damaged", "Damaged lines", scroll(h.Aria("labelledby", "damaged"), h.Table(
		h.Caption(g.Textf("The first %d of %s that could not be read", len(p.Damaged), number(p.DamagedLines))),
		columns(column("name", "File"), column("n", "Line"), column("words", "Why")),
		h.TBody(g.Map(p.Damaged, func(d Damaged) g.Node {
			return h.Tr(h.Th(h.Scope("row"), h.Class("name"), g.Text(d.File)), cell("n", number(d.Line)), cell("words", d.Why))
		})),
	)))
}

func (p *page) unknown() g.Node {
	if len(p.UnknownKinds)+len(p.UnknownKeys) == 0 {
		return nil
	}
	return section("unknown", "Unknown kinds and keys",
		h.P(g.Text("Of a newer twtrace: counted, and not understood.")),
		h.Dl(h.Class("facts"),
			g.If(len(p.UnknownKinds) > 0, fact("Kinds", eachShare(sorted(p.UnknownKinds)))),
			g.If(len(p.UnknownKeys) > 0, fact("Keys", eachShare(sorted(p.UnknownKeys)))),
		),
	)
}

func (p *page) connection() g.Node {
	s := p.Connection
	if s == nil {
		return nil
	}
	var lines []string
	for _, e := range s.Lines {
		lines = append(lines, e.Line)
	}
	return section("connection", "One connection",
		h.Dl(h.Class("facts"),
			fact("Socket cookie", code(s.Cookie)),
			g.If(s.Peer != "", fact("Peer", isolated(s.Peer))),
			g.If(s.Owner != "", fact("Owner", isolated(s.Owner))),
		),
		g.If(len(s.Lines) > 0, scroll(h.Aria("labelledby", "connection"), h.Table(
			h.Caption(g.Text("All that the log has about it")),
			columns(column("", "Time"), column("n", "After"), column("words", "What happened")),
			h.TBody(g.Map(s.Lines, func(e Event) g.Node {
				return h.Tr(h.Th(h.Scope("row"), g.Text(p.at(e.Time))), cell("n", ms(e.Offset)), cell("", e.Text))
			})),
		))),
		logged(lines),
		g.If(len(s.Lines) == 0, h.P(g.Text("The log has nothing about it."))),
	)
}

// What follows is what the sections are made of.

func section(id, title string, content ...g.Node) g.Node {
	return h.Section(h.Aria("labelledby", id), h.H2(h.ID(id), g.Text(title)), g.Group(content))
}

func fact(name string, value ...g.Node) g.Node {
	return g.Group{h.Dt(g.Text(name)), h.Dd(value...)}
}

// scroll holds a table that may be wider than the page: by the keyboard, too.
func scroll(label, table g.Node) g.Node {
	return h.Div(h.Class("scroll"), h.TabIndex("0"), h.Role("region"), label, table)
}

func columns(heads ...g.Node) g.Node { return h.THead(h.Tr(heads...)) }

func column(class, title string) g.Node {
	return h.Th(h.Scope("col"), g.If(class != "", h.Class(class)), g.Text(title))
}

func cell(class, content string) g.Node {
	return h.Td(g.If(class != "", h.Class(class)), g.Text(content))
}

func code(name string) g.Node { return h.Code(g.Text(name)) }

func note(content string) g.Node { return h.Span(h.Class("note"), g.Text(content)) }

// isolated is a name whose direction of writing stays its own.
func isolated(name string) g.Node { return g.El("bdi", g.Text(name)) }

func items(all []string) g.Node {
	return h.Ul(g.Map(all, func(item string) g.Node { return h.Li(g.Text(item)) }))
}

// logged are lines of the log, where there are any.
func logged(lines []string) g.Node {
	return g.If(len(lines) > 0, h.Details(
		h.Summary(g.Text("Log lines")),
		g.Map(lines, func(line string) g.Node { return h.Pre(h.TabIndex("0"), g.Text(line)) }),
	))
}

func eachShare(shares []Share) g.Node {
	return separated(g.Text(", "), g.Map(shares, func(s Share) g.Node {
		return g.Group{h.Span(h.Class("times"), g.Text(number(s.Count)+" × ")), isolated(s.Name)}
	}))
}

func separated(by g.Node, nodes g.Group) g.Group {
	var all g.Group
	for i, n := range nodes {
		if i > 0 {
			all = append(all, by)
		}
		all = append(all, n)
	}
	return all
}

func orNone(nodes g.Group) g.Node {
	if len(nodes) == 0 {
		return g.Text("none")
	}
	return nodes
}
