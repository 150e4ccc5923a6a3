from mobileprune.report.drawing import svg


def test_the_same_drawing_is_the_same_element():
    def line(end):
        return svg((3, 2), lambda figure, axes: axes.plot([1, end], label="line"))

    assert line(2) == line(2) != line(3)
    assert line(2).startswith("<svg")
    assert line(2).rstrip().endswith("</svg>")
