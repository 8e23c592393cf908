"""What do the programs of `fused_experts` compute on an NVIDIA GPU?

A program of `multiply` takes a block of rows of one expert and a block of outputs. For each input slice it multiplies
DAC codes and programmed weights, both in fp16, with sums in fp32. It rounds and clamps the sum to an ADC code, and adds
that times the code's value. Partial products never leave the registers.

Importing this module needs Triton, which comes with torch for CUDA: `realmodels.analog` imports it only there.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]

# Adding and subtracting it rounds a number below 2^22 to the nearest integer, ties to even.
MAGIC = tl.constexpr(1.5 * 2**23)
NAN = tl.constexpr(tl.PropagateNan.ALL)  # the smaller or larger of a number and none is none


@triton.jit(do_not_specialize=["pairs", "most_blocks", "grouping", "rows"])
def prepare(
    index, counts, ranks, order, blocks, x, codes, by_expert, pairs, most_blocks, grouping, rows,
    experts: tl.constexpr, chunk: tl.constexpr, alone: tl.constexpr, block_rows: tl.constexpr,
    inputs: tl.constexpr, tile: tl.constexpr, width: tl.constexpr, columns: tl.constexpr,
    bounds: tl.constexpr, levels: tl.constexpr, terms: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """The first programs count the pairs of each expert; one alone also places them. The others are the DAC of rows."""
    program = tl.program_id(0)
    if program < grouping:
        pair = program * chunk + tl.arange(0, chunk)
        every = tl.arange(0, experts)
        expert = tl.load(index + pair, pair < pairs, other=experts)
        chosen = (expert[:, None] == every[None, :]).to(tl.int32)
        rank = tl.cumsum(chosen, 0) - 1
        if alone:
            rank = tl.sum(chosen * rank, 1)
            own = tl.sum(chosen, 0)[None, :]
            _place(expert, rank, own, order, blocks, pair, pairs, most_blocks, experts, block_rows)
        else:
            # The rank of a pair is its own among those of its expert, in any order.
            before = tl.atomic_add(counts + every, tl.sum(chosen, 0))
            tl.store(ranks + pair, tl.sum(chosen * (before[None, :] + rank), 1), pair < pairs)
    else:
        across: tl.constexpr = (inputs + block - 1) // block
        number = program - grouping
        _convert(
            x, codes, by_expert, number // across, number % across, rows, columns, inputs, tile, width, bounds,
            levels, terms, block,
        )  # fmt: skip


@triton.jit(do_not_specialize=["pairs", "most_blocks"])
def place(
    index, counts, ranks, order, blocks, pairs, most_blocks,
    experts: tl.constexpr, chunk: tl.constexpr, block_rows: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0) * chunk + tl.arange(0, chunk)
    expert = tl.load(index + number, number < pairs, other=experts)
    rank = tl.load(ranks + number, number < pairs, other=0)
    own = tl.load(counts + tl.arange(0, experts)[None, :])
    _place(expert, rank, own, order, blocks, number, pairs, most_blocks, experts, block_rows)


@triton.jit
def _place(
    expert, rank, own, order, blocks, number, pairs, most_blocks,
    experts: tl.constexpr, block_rows: tl.constexpr,
):  # fmt: skip
    """Give each pair its row, and each block its expert and rows. own: the number of pairs of each expert."""
    every, ends = tl.arange(0, experts)[None, :], tl.cumsum(own, 1)
    start = tl.sum(tl.where(expert[:, None] == every, ends - own, 0), 1)
    tl.store(order + start + rank, number, number < pairs)
    own_blocks = (own + block_rows - 1) // block_rows
    block_ends = tl.cumsum(own_blocks, 1)
    owner = tl.sum((block_ends <= number[:, None]).to(tl.int32), 1)
    owns = owner[:, None] == every
    first = ends - own + (number[:, None] - block_ends + own_blocks) * block_rows
    tl.store(blocks + 3 * number, owner, number < most_blocks)
    tl.store(blocks + 3 * number + 1, tl.sum(tl.where(owns, first, 0), 1), number < most_blocks)
    tl.store(blocks + 3 * number + 2, tl.sum(tl.where(owns, ends, 0), 1), number < most_blocks)


@triton.jit(do_not_specialize=["rows"])
def convert(
    x, held, codes, by_expert, rows, inputs: tl.constexpr, tile: tl.constexpr, width: tl.constexpr,
    columns: tl.constexpr, bounds: tl.constexpr, levels: tl.constexpr, terms: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    if held is not None:
        by_expert += 3 * bounds * tl.load(held + row)
    _convert(
        x, codes, by_expert, row, tl.program_id(1), rows, columns, inputs, tile, width, bounds, levels, terms,
        block,
    )  # fmt: skip


@triton.jit
def _convert(
    x, codes, by_expert, row, part, rows, columns, inputs: tl.constexpr, tile: tl.constexpr,
    width: tl.constexpr, bounds: tl.constexpr, levels: tl.constexpr, terms: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    """The DAC of `block` inputs of one row; bounds: how many input slices have a DAC bound of their own, else 1."""
    source = part * block + tl.arange(0, block)
    row = row.to(tl.int64)
    value = tl.load(x + row * inputs + source, source < inputs, other=0).to(tl.float32)
    if bounds > 1:
        value *= tl.load(by_expert + 3 * (source // tile), source < inputs, other=0)
    else:
        value *= tl.load(by_expert)
    target = codes + row * columns + (source // tile * width + source % tile)
    _write_codes(target, value, rows, columns, source < inputs, levels, terms)


@triton.jit
def _write_codes(target, value, rows, columns, there, levels: tl.constexpr, terms: tl.constexpr):
    """Round to DAC codes, if there is a DAC, and write them as sums of fp16 numbers."""
    if levels > 0:
        value = _rounded(value, levels)
    for term in tl.static_range(terms):
        part = value.to(tl.float16)
        tl.store(target + term * rows.to(tl.int64) * columns, part, there)
        value -= part.to(tl.float32)


@triton.jit
def _rounded(value, levels: tl.constexpr):
    return (_clamped(value, levels) + MAGIC) - MAGIC


@triton.jit
def _clamped(value, levels: tl.constexpr):
    value = tl.minimum(value, levels * 1.0, propagate_nan=NAN)
    return tl.maximum(value, -levels * 1.0, propagate_nan=NAN)


@triton.jit(do_not_specialize=["code_rows", "output_rows", "analog"])
def multiply(
    codes, weight, scale, by_expert, counts, digital, digital_weight, bias,
    order, blocks, places, routing_weights, output, digital_output, down_by_expert, down_counts,
    code_rows, output_rows, analog, alpha, limit,
    scale_blocks: tl.constexpr, digital_expert: tl.constexpr, digital_out: tl.constexpr,
    digital_in: tl.constexpr, gate: tl.constexpr, matrices: tl.constexpr,
    interleaved: tl.constexpr, choices: tl.constexpr,
    any_digital: tl.constexpr, slices: tl.constexpr, outputs: tl.constexpr, width: tl.constexpr,
    inputs: tl.constexpr, terms: tl.constexpr, dac_levels: tl.constexpr, adc_levels: tl.constexpr,
    count: tl.constexpr, down_tile: tl.constexpr, down_width: tl.constexpr, down_columns: tl.constexpr,
    bounds: tl.constexpr, down_bounds: tl.constexpr,
    block_rows: tl.constexpr, block_outputs: tl.constexpr, block_inputs: tl.constexpr,
    digital_inputs: tl.constexpr, whole: tl.constexpr, digital_whole: tl.constexpr,
):  # fmt: skip
    """A block of rows of one expert times a block of outputs; `_Product.multiply` says what is written.

    Output 2 i is gate i and output 2 i + 1 is up i, so that both end in one thread.
    """
    across: tl.constexpr = (outputs + block_outputs - 1) // block_outputs
    block = tl.program_id(0) // across
    expert = tl.load(blocks + 3 * block).to(tl.int64)
    end = tl.load(blocks + 3 * block + 2)
    if end == 0:  # no rows
        return
    row = tl.load(blocks + 3 * block + 1) + tl.arange(0, block_rows)
    there = row < end
    row = tl.minimum(row, end - 1).to(tl.int64)
    pair = tl.load(order + row).to(tl.int64)
    read = row if choices == 0 else pair // choices
    start = tl.program_id(0) % across * block_outputs
    out = start + tl.arange(0, block_outputs)
    stored = out if interleaved else out % 2 * (outputs // 2) + out // 2
    held = tl.load(places + expert).to(tl.int64)
    if any_digital:
        if held < analog:
            total = _analog(
                codes, weight, scale, by_expert + 3 * bounds * held, counts, held, read, out, there,
                code_rows, analog, scale_blocks, matrices, slices, outputs, width, bounds, terms, adc_levels,
                count, block_rows, block_outputs, block_inputs, whole,
            )  # fmt: skip
            _write(
                total, bias, expert, row, pair, start, stored, there, routing_weights, output, output_rows,
                down_by_expert + 3 * down_bounds * held, down_counts, alpha, limit, gate, outputs, dac_levels, terms,
                down_tile, down_width, down_columns, down_bounds, count, block_rows, block_outputs, False,
            )  # fmt: skip
        else:
            total = _digital(
                digital, digital_weight + expert * digital_expert, read, stored, out, digital_out, digital_in,
                outputs, inputs, block_rows, block_outputs, digital_inputs, digital_whole,
            )  # fmt: skip
            _write(
                total, bias, expert, row, pair, start, stored, there, routing_weights,
                output if gate == "weights" or gate == "products" else digital_output, output_rows,
                down_by_expert, down_counts, alpha, limit, gate, outputs, dac_levels, terms,
                down_tile, down_width, down_columns, down_bounds, count, block_rows, block_outputs, True,
            )  # fmt: skip
    else:
        total = _analog(
            codes, weight, scale, by_expert + 3 * bounds * held, counts, held, read, out, there,
            code_rows, analog, scale_blocks, matrices, slices, outputs, width, bounds, terms, adc_levels,
            count, block_rows, block_outputs, block_inputs, whole,
        )  # fmt: skip
        _write(
            total, bias, expert, row, pair, start, stored, there, routing_weights, output, output_rows,
            down_by_expert + 3 * down_bounds * held, down_counts, alpha, limit, gate, outputs, dac_levels, terms,
            down_tile, down_width, down_columns, down_bounds, count, block_rows, block_outputs, False,
        )  # fmt: skip


@triton.jit
def _analog(
    codes, weight, scale, by_expert, counts, held, read, out, there, code_rows, analog, scale_blocks,
    matrices: tl.constexpr, slices: tl.constexpr, outputs: tl.constexpr, width: tl.constexpr,
    bounds: tl.constexpr, terms: tl.constexpr, levels: tl.constexpr, count: tl.constexpr,
    block_rows: tl.constexpr, block_outputs: tl.constexpr, block_inputs: tl.constexpr, whole: tl.constexpr,
    bulk: tl.constexpr = False, first_row=None, first_out=None,
    converted: tl.constexpr = True, inputs: tl.constexpr = 0, tile: tl.constexpr = 0,
    dac_levels: tl.constexpr = 0,
):  # fmt: skip
    """The sum over slices of what the ADCs read.

    by_expert: what the converters of this expert do.
    bulk: codes and weight are descriptors of tensors (terms * rows, columns) and (slices * outputs, width), from which
        blocks are copied as a whole.
    converted: if not, codes are inputs (rows, inputs) that the DAC has not seen yet.
    """
    columns: tl.constexpr = slices * width
    steps: tl.constexpr = (width + block_inputs - 1) // block_inputs
    experts, out_there, inside = analog.to(tl.int64), out < outputs, tl.arange(0, block_inputs)
    if not bulk:
        codes += read[:, None] * (columns if converted else inputs) + inside[None, :]
        weight += (held * outputs + out)[None, :] * width + inside[:, None]
    # The outputs of gate, then those of up, in runs with one scale.
    run = outputs // scale_blocks
    scale += held * scale_blocks + (out % matrices * (outputs // matrices) + out // matrices) // run
    total = tl.zeros((block_rows, block_outputs), tl.float32)
    product = tl.zeros((block_rows, block_outputs), tl.float32)
    saturated = tl.zeros((block_rows, block_outputs), tl.int32)
    value = tl.load(scale, out_there, other=0)
    dac, gain = tl.load(by_expert), tl.load(by_expert + 1)
    # One loop over slices and their inputs, so that the next slice is fetched while this one is read.
    for step in tl.range(slices * steps, num_stages=4 if block_rows == 1 else None):
        number, start = step // steps, step % steps * block_inputs
        if bounds > 1:
            dac, gain = tl.load(by_expert + 3 * number), tl.load(by_expert + 3 * number + 1)
        if bulk:
            weights = weight.load([number * outputs + first_out, start]).T
        else:
            block = weight + number * (experts * (outputs * width)) + start
            if whole:
                weights = tl.load(block)
            else:
                weights = tl.load(block, (start + inside < width)[:, None] & out_there[None, :], other=0)
        if not converted:
            source = number * tile + start
            own = (start + inside < tile) & (source + inside < inputs)
            values = tl.load(codes + source) if whole else tl.load(codes + source, own[None, :], other=0)
            values = values.to(tl.float32) * dac
            if dac_levels > 0:
                values = _rounded(values, dac_levels)
        for term in tl.static_range(terms):
            if not converted:
                part = values.to(tl.float16)
                values -= part.to(tl.float32)
            elif bulk:
                part = codes.load([term * code_rows + first_row, number * width + start])
            else:
                source = codes + term * code_rows.to(tl.int64) * columns + (number * width + start)
                part = (
                    tl.load(source) if whole else tl.load(source, (start + inside < width)[None, :], other=0)
                )
            if block_rows == 1:
                product += tl.sum(tl.trans(part.to(tl.float32)) * weights.to(tl.float32), 0)[None, :]
            else:
                product = tl.dot(part, weights, product)
        if start + block_inputs >= width:
            if levels > 0:
                if count:
                    beyond = tl.abs(product * gain) > levels
                    saturated += (beyond & there[:, None] & out_there[None, :]).to(tl.int32)
                product = _clamped(tl.fma(product, gain, MAGIC) - MAGIC, levels)
            total += product * value[None, :]
            product = tl.zeros((block_rows, block_outputs), tl.float32)
            value = tl.load(
                scale + (number + 1) * (experts * scale_blocks), out_there & (number + 1 < slices), other=0
            )
    if count and levels > 0:
        conversions = slices * tl.sum((there[:, None] & out_there[None, :]).to(tl.int32))
        tl.atomic_add(counts + 2, tl.sum(saturated).to(tl.int64))
        tl.atomic_add(counts + 3, conversions.to(tl.int64))
    return total


@triton.jit(do_not_specialize=["rows"])
def linear(
    x, weight, scale, by_expert, counts, bias, output, rows,
    converted: tl.constexpr, bulk: tl.constexpr, scale_blocks: tl.constexpr, slices: tl.constexpr,
    outputs: tl.constexpr, width: tl.constexpr, inputs: tl.constexpr, tile: tl.constexpr,
    bounds: tl.constexpr, terms: tl.constexpr, dac_levels: tl.constexpr, adc_levels: tl.constexpr, count: tl.constexpr,
    block_rows: tl.constexpr, block_outputs: tl.constexpr, block_inputs: tl.constexpr, whole: tl.constexpr,
    group: tl.constexpr,
):  # fmt: skip
    """A block of rows times a block of outputs of one matrix.

    x: DAC codes, if they are `converted`; else inputs.
    group: as many blocks of rows take turns with one block of outputs.
    """
    across: tl.constexpr = (outputs + block_outputs - 1) // block_outputs
    program, down = tl.program_id(0), tl.cdiv(rows, block_rows)
    first = program // (group * across) * group
    members = tl.minimum(down - first, group)
    first_row = (first + program % (group * across) % members) * block_rows
    first_out = program % (group * across) // members * block_outputs
    row, out = first_row + tl.arange(0, block_rows), first_out + tl.arange(0, block_outputs)
    there, one = row < rows, tl.full((), 1, tl.int64)
    row = tl.minimum(row, rows - 1).to(tl.int64)
    total = _analog(
        x, weight, scale, by_expert, counts, one - 1, row, out, there, rows, one, scale_blocks,
        1, slices, outputs, width, bounds, terms, adc_levels, count, block_rows, block_outputs, block_inputs,
        whole, bulk, first_row, first_out, converted, inputs, tile, dac_levels,
    )  # fmt: skip
    if bias is not None:
        total += tl.load(bias + out, out < outputs, other=0).to(tl.float32)[None, :]
    target = output + row[:, None] * outputs + out[None, :]
    tl.store(target, total.to(output.dtype.element_ty), there[:, None] & (out < outputs)[None, :])


@triton.jit
def _digital(
    x, weight, read, stored, out, weight_out, weight_in, outputs: tl.constexpr, inputs: tl.constexpr,
    block_rows: tl.constexpr, block_outputs: tl.constexpr, block_inputs: tl.constexpr, whole: tl.constexpr,
):  # fmt: skip
    """The product in the model's dtype, with sums in fp32."""
    inside = tl.arange(0, block_inputs)
    x += read[:, None] * inputs + inside[None, :]
    weight += stored.to(tl.int64)[None, :] * weight_out
    total = tl.zeros((block_rows, block_outputs), tl.float32)
    for start in range(0, inputs, block_inputs):
        tile = weight + (start + inside)[:, None] * weight_in
        if whole:
            total = tl.dot(tl.load(x + start), tl.load(tile), total, input_precision="ieee")
        else:
            there = start + inside < inputs
            part = tl.load(x + start, there[None, :], other=0)
            weights = tl.load(tile, there[:, None] & (out < outputs)[None, :], other=0)
            total = tl.dot(part, weights, total, input_precision="ieee")
    return total


@triton.jit
def _write(
    total, bias, expert, row, pair, start, stored, there, routing_weights, output, output_rows,
    down_by_expert, down_counts, alpha, limit, gate: tl.constexpr, outputs: tl.constexpr,
    dac_levels: tl.constexpr, terms: tl.constexpr,
    down_tile: tl.constexpr, down_width: tl.constexpr, down_columns: tl.constexpr,
    down_bounds: tl.constexpr, count: tl.constexpr,
    block_rows: tl.constexpr, block_outputs: tl.constexpr, is_digital: tl.constexpr,
):  # fmt: skip
    """Add the bias, and do what `gate` says."""
    out = start + tl.arange(0, block_outputs)
    if bias is not None:
        total += tl.load(bias + expert * outputs + stored, out < outputs, other=0).to(tl.float32)[None, :]
    if gate == "weights":
        total *= tl.load(routing_weights + pair).to(tl.float32)[:, None]
        target = output + pair[:, None] * outputs + out[None, :]
        tl.store(target, total, there[:, None] & (out < outputs)[None, :])
    elif gate == "products":
        target = output + row[:, None] * outputs + stored[None, :]
        tl.store(target, total, there[:, None] & (out < outputs)[None, :])
    else:
        gates, ups = tl.split(tl.reshape(total, (block_rows, block_outputs // 2, 2)))
        inner = _activation(gates, ups, alpha, limit, gate)
        column = start // 2 + tl.arange(0, block_outputs // 2)
        inner_there = there[:, None] & (column < outputs // 2)[None, :]
        if is_digital:
            target = output + row[:, None] * (outputs // 2) + column[None, :]
            tl.store(target, inner.to(output.dtype.element_ty), inner_there)
        else:
            if down_bounds > 1:
                down_by_expert += 3 * (column // down_tile)[None, :]
            column_there = (column < outputs // 2)[None, :] if down_bounds > 1 else None
            if count and dac_levels > 0:
                beyond = (tl.abs(inner) > tl.load(down_by_expert + 2, column_there)) & inner_there
                tl.atomic_add(down_counts, tl.sum(beyond.to(tl.int32)).to(tl.int64))
                tl.atomic_add(down_counts + 1, tl.sum(inner_there.to(tl.int32)).to(tl.int64))
            place = column
            if down_tile != down_width:
                place = column // down_tile * down_width + column % down_tile
            target = output + row[:, None] * down_columns + place[None, :]
            codes = inner * tl.load(down_by_expert, column_there)
            _write_codes(target, codes, output_rows, down_columns, inner_there, dac_levels, terms)


@triton.jit
def _activation(gate, up, alpha, limit, name: tl.constexpr):
    if name == "clamped":
        up = tl.maximum(tl.minimum(up, limit, propagate_nan=NAN), -limit, propagate_nan=NAN) + 1
        gate = tl.minimum(gate, limit, propagate_nan=NAN)
        gate = gate * tl.sigmoid(alpha * gate)
    elif name == "silu":
        gate = gate * tl.sigmoid(gate)
    elif name == "relu":
        gate = tl.maximum(gate, 0.0, propagate_nan=NAN)
    else:
        tl.static_assert(name == "identity")
    return gate * up


@triton.jit
def combine(results, output, outputs: tl.constexpr, choices: tl.constexpr, block: tl.constexpr):
    """The sum over a token's experts."""
    token, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * block + tl.arange(0, block)
    total = tl.zeros((block,), tl.float32)
    for choice in tl.static_range(choices):
        total += tl.load(results + (token * choices + choice) * outputs + column, column < outputs, other=0)
    target = output + token * outputs + column
    tl.store(target, total.to(output.dtype.element_ty), column < outputs)
